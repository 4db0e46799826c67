"""``stepwatch checkpoints``."""

from __future__ import annotations

from pathlib import Path

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH


@click.command("checkpoints")
@click.argument("run", type=RUN_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@errors.one_line_errors
def command(run: Path, as_json: bool) -> None:
    """List the checkpoints that a job noted, and which of them are suspect.

    A checkpoint is suspect that was written after a tensor was no longer finite or the loss diverged. Nothing is
    deleted.

    Exit status: 1 when one is suspect, else 0.
    """
    from rich.table import Table
    from rich.text import Text

    from stepwatch.cli.render import console, print_json
    from stepwatch.probe.store.reader import Trace
    from stepwatch.probe.store.suspects import CORRUPTING, judge_checkpoints, last_healthy, resumed_from_suspect
    from stepwatch.rules.catalogue import configure
    from stepwatch.rules.checkpoints import onsets
    from stepwatch.rules.replay import analyze

    errors.print_warnings_with_the_result()
    trace = Trace(run)
    troubles = onsets(trace, analyze(trace, configure(list(CORRUPTING))).findings)
    checkpoints = judge_checkpoints(trace, troubles)
    healthy = last_healthy(checkpoints)
    warning = resumed_from_suspect(trace, troubles)
    if as_json:
        content = {"run": str(run), "checkpoints": [each.to_json() for each in checkpoints]}
        print_json({**content, "last_healthy": healthy.path if healthy else None, "warning": warning})
    elif not checkpoints:
        click.echo(f"{run}: no checkpoint was noted; a script notes them by hook.note_checkpoint(path)")
    else:
        table = Table("attempt", "step", "checkpoint", "", box=None, pad_edge=False)
        for each in checkpoints:
            state = Text(f"suspect: {each.why}", "red") if each.suspect else Text("healthy", "green")
            table.add_row(str(each.note.attempt), str(each.note.step), Text(each.note.path), state)
        out = console()
        out.print(table)
        last = f"{healthy.path} (step {healthy.step})" if healthy else "none"
        out.print(Text(f"last healthy checkpoint: {last}", "bold"))
        if warning:
            out.print(Text(f"warning: {warning}", "yellow"))
    raise SystemExit(errors.ISSUES_FOUND if any(each.suspect for each in checkpoints) else errors.NOTHING_FOUND)
