"""``stepwatch stacks``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from stepwatch.probe.store.reader import Trace
    from stepwatch.rules.stacks import Line

_LINES = 10


@click.command("stacks")
@click.argument("run", type=RUN_PATH)
@click.option("--rank", "ranks", type=int, multiple=True, help="Ranks that are shown; all by default.")
@click.option(
    "--seconds",
    type=click.IntRange(min=1, max=600),
    help="Watch for so many seconds, and tell which lines hold the time; needs py-spy.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@errors.one_line_errors
def command(run: Path, ranks: tuple[int, ...], seconds: int | None, as_json: bool) -> None:
    """Show where the threads of a running job's ranks are, of those that run on this machine.

    Each process is asked by a signal, which it answers also while it hangs in a collective or an extension; the job
    goes on. With --seconds py-spy watches instead, without stopping the processes.

    Exit status: 0 shown, 1 of no rank they could be had, 2 unusable arguments or input.
    """
    from stepwatch.cli.render import console, print_json
    from stepwatch.probe.store.reader import Trace

    trace = Trace(run)
    for rank in ranks:
        if rank not in trace.ranks:
            errors.fail(f"{run}: has no rank {rank}; expected one of {', '.join(map(str, trace.ranks)) or 'none'}")
    if not trace.live():
        errors.fail(f"{run}: the run is not live; it has no stacks")
    chosen = ranks or tuple(trace.ranks)
    found = _sampled(trace, chosen, seconds) if seconds is not None else _now(trace, chosen)
    if as_json:
        print_json(found)
    else:
        out = console()
        for number, each in enumerate(found):
            if number:
                out.print()
            _print(out, each)
    if all(each["missing"] for each in found):
        raise SystemExit(errors.ISSUES_FOUND)


def _about(trace: Trace, rank: int) -> dict[str, Any]:
    from stepwatch.rules.stacks import read_beat

    beat = read_beat(trace.path, rank)
    return {"rank": rank, "step": beat.get("step"), "phase": beat.get("phase"), "missing": ""}


def _now(trace: Trace, ranks: Sequence[int]) -> list[dict[str, Any]]:
    """Of each rank its threads, those of the hook left out."""
    from stepwatch.rules.stacks import NoStacks, read_beat, script_threads, take_stacks

    found = []
    for rank in ranks:
        about = _about(trace, rank)
        try:
            about["threads"] = script_threads(take_stacks(trace, rank, read_beat(trace.path, rank)))
        except NoStacks as error:
            about["missing"] = str(error)
        found.append(about)
    return found


def _sampled(trace: Trace, ranks: Sequence[int], seconds: int) -> list[dict[str, Any]]:
    """Of each rank the lines that hold the time; where py-spy may not look, its threads now."""
    from dataclasses import asdict

    from stepwatch.rules.stacks import NoStacks, sample_lines

    found = []
    for rank, lines in sorted(sample_lines(trace, ranks, seconds).items()):
        if isinstance(lines, NoStacks):
            (instead,) = _now(trace, [rank])
            found.append({**instead, "note": str(lines)})
        else:
            found.append({**_about(trace, rank), "lines": [asdict(line) for line in lines]})
    return found


def _print(out: Console, about: dict[str, Any]) -> None:
    at = f", which said last: step {about['step']}, in {about['phase']}" if about["step"] is not None else ""
    out.print(f"rank {about['rank']}{at}", style="bold", markup=False)
    if about.get("note"):
        out.print(f"{about['note']}; where it is now:", style="yellow", markup=False)
    if about["missing"]:
        out.print(f"no stacks: {about['missing']}", style="yellow", markup=False)
    for text in about.get("threads", ()):
        out.print(text, markup=False, soft_wrap=True)
    if "lines" in about:
        from stepwatch.rules.stacks import Line

        _print_lines(out, [Line(**row) for row in about["lines"]])


def _print_lines(out: Console, lines: Sequence[Line]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("thread", no_wrap=True)
    table.add_column("share", justify="right")
    table.add_column("line of the script", overflow="fold")
    table.add_column("inside", overflow="fold")
    for line in lines[:_LINES]:
        table.add_row(Text(line.thread), f"{100 * line.share:.0f} %", Text(line.line), Text(line.inside))
    out.print(table if lines else "no samples of the script's own threads")
