"""``stepwatch study``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH

if TYPE_CHECKING:
    from stepwatch.rules.study.summary import StudySummary


@click.command("study")
@click.argument("places", metavar="DIR...", nargs=-1, required=True, type=RUN_PATH)
@click.option("--objective", metavar="NAME", help="Scalar to compare by: NAME, NAME:min, NAME:max; a loss by default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object with the list of trials.")
@errors.one_line_errors
def command(places: tuple[Path, ...], objective: str | None, as_json: bool) -> None:
    """Sum up a tuning job: the trials below DIR, the best first, and why which was given up.

    Losses of training are compared by their mean over twenty recorded steps, values of an evaluation as they are.
    """
    from stepwatch.cli.render import print_json
    from stepwatch.probe.store.discovery import find_runs
    from stepwatch.rules.study.summary import summarise

    errors.print_warnings_with_the_result()
    summary = summarise(find_runs(places), objective)
    if as_json:
        print_json(summary.to_json())
    else:
        _print(summary)
    for reason in summary.unreadable:
        click.echo(f"stepwatch: {reason}", err=True)


def _print(summary: StudySummary) -> None:
    from rich.table import Table
    from rich.text import Text

    from stepwatch.cli.render import console

    table = Table(box=None, pad_edge=False)
    headings = ("trial", "status", "step", f"best {summary.objective or 'loss'}", "at step", "given up", "findings")
    for heading in headings:
        right = heading.startswith(("step", "best", "at"))
        table.add_column(Text(heading), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for trial in summary.trials:
        numbers = ("" if number is None else str(number) for number in (trial.step, trial.best_step))
        step, best_step = numbers
        best = "" if trial.best is None else f"{trial.best:.4g}"
        why = trial.given_up.removeprefix("the trial ").partition(":")[0]
        cells = (trial.run, trial.status, step, best, best_step, why, ", ".join(trial.findings))
        table.add_row(*map(Text, cells))
    out = console()
    out.print(table)
    given_up = sum(bool(trial.given_up) for trial in summary.trials)
    trials = "1 trial" if len(summary.trials) == 1 else f"{len(summary.trials)} trials"
    line = f"{trials}, {given_up} given up"
    out.print(line + (f", which spared {summary.spared:.0%} of the steps" if given_up else ""), highlight=False)
