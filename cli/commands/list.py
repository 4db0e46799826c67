"""``stepwatch list``."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from stepwatch.cli import errors
from stepwatch.cli.progress import progress
from stepwatch.cli.runs import RUN_PATH

if TYPE_CHECKING:
    from stepwatch.cli.overview import Overview
    from stepwatch.rules.compare.objective import Objective, Standing

    Line: TypeAlias = "tuple[Overview, tuple[Objective, Standing] | None]"

_COLUMNS = ("run", "status", "step", "started")


@click.command("list")
@click.argument("places", metavar="DIR...", nargs=-1, required=True, type=RUN_PATH)
@click.option(
    "--sort",
    default="started",
    show_default=True,
    metavar="KEY",
    help="run, status, step, started, or a scalar by which the best comes first: loss, NAME, NAME:min, NAME:max.",
)
@click.option("--tag", "tags", multiple=True, help="Only runs with this tag; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of objects.")
@errors.one_line_errors
def command(places: tuple[Path, ...], sort: str, tags: tuple[str, ...], as_json: bool) -> None:
    """List the runs below DIR: how they stand, what was found, what they are tagged with.

    A DIR may also be a quoted pattern. "loss" is the evaluation loss where a run has one, else its training loss. A
    scalar stands with its last value (the mean of the last ones, where there are many) and its best.
    """
    from stepwatch.cli.overview import overview, standing_of
    from stepwatch.cli.render import print_json
    from stepwatch.probe.store.discovery import find_runs
    from stepwatch.probe.store.labels import read_labels

    errors.print_warnings_with_the_result()
    runs = [run for run in find_runs(places) if set(tags) <= set(read_labels(run).tags)]
    scalar = None if sort in _COLUMNS else sort
    lines: list[Line] = []
    with progress("reading runs", len(runs)) as advance:
        for run in runs:
            stands = standing_of(run, str(run), None if scalar == "loss" else scalar) if scalar else None
            lines.append((overview(run, str(run)), stands))
            advance()
    if scalar and runs and not any(stands for _, stands in lines):
        errors.fail(f"--sort {sort!r}: no run has recorded it; expected {', '.join(_COLUMNS)}, loss or a scalar's name")
    lines = _by_scalar(lines) if scalar else _by_column(lines, sort)
    if as_json:
        print_json([_to_json(line) for line in lines])
    else:
        _print(lines, scalar)


def _by_scalar(lines: Sequence[Line]) -> list[Line]:
    def key(line: Line) -> float:
        if line[1] is None or not math.isfinite(line[1][1].last):
            return math.inf
        objective, stands = line[1]
        return stands.last if objective.goal == "min" else -stands.last

    return sorted(lines, key=lambda line: (key(line), line[1] is None))


def _by_column(lines: Sequence[Line], column: str) -> list[Line]:
    if column in ("run", "status"):
        return sorted(lines, key=lambda line: (str(getattr(line[0], column)), line[0].run))
    if column == "step":
        return sorted(lines, key=lambda line: -1 if line[0].step is None else line[0].step, reverse=True)
    return sorted(lines, key=lambda line: line[0].started_ns, reverse=True)


def _to_json(line: Line) -> dict[str, object]:
    row, stands = line
    content = row.to_json()
    del content["version"]
    if stands is not None:
        objective, standing = stands
        content["objective"] = {
            "name": objective.name,
            "mode": objective.mode,
            "goal": objective.goal,
            "last": standing.last,
            "last_step": standing.last_step,
            "best": standing.best,
            "best_step": standing.best_step,
        }
    return content


def _print(lines: Sequence[Line], scalar: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from stepwatch.cli.render import console

    numbers = (scalar.removesuffix(":min").removesuffix(":max"), "best", "at step") if scalar else ("loss",)
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "status", "step", *numbers, "findings", "tags", "started"):
        right = heading in ("step", *numbers)
        table.add_column(Text(heading), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row, stands in lines:
        if scalar is None:
            shown = ["" if row.loss is None else f"{row.loss:.4g}"]
        elif stands is None:
            shown = ["", "", ""]
        else:
            shown = [f"{stands[1].last:.4g}", f"{stands[1].best:.4g}", str(stands[1].best_step)]
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.started_ns / 1e9)) if row.started_ns else ""
        step = "" if row.step is None else str(row.step)
        tags = " ".join([*(["[baseline]"] if row.baseline else []), *row.tags])
        cells = (row.run, row.status, step, *shown, ", ".join(row.findings), tags, started)
        table.add_row(*map(Text, cells))
    out = console()
    out.print(table)
    for row, _ in lines:
        if row.error:
            click.echo(f"stepwatch: {' '.join(row.error.split())}", err=True)
