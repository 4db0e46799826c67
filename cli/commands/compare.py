"""``stepwatch compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepwatch.cli import errors
from stepwatch.cli.progress import busy
from stepwatch.cli.runs import RUN_PATH

if TYPE_CHECKING:
    from rich.console import Console

    from stepwatch.rules.compare.runs import Comparison, Pair

_SHOWN_LAYERS = 12


@click.command("compare")
@click.argument("runs", metavar="[BASELINE] RUN...", nargs=-1, required=True, type=RUN_PATH)
@click.option(
    "--objective",
    metavar="NAME[:min|:max]",
    help="Scalar to judge by; by default the evaluation loss, or the training loss.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write a page (HTML) that needs nothing else, with plots."
)
@click.option("--exact", is_flag=True, help="Exit with status 1 unless all that was recorded agrees bit for bit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@errors.one_line_errors
def command(runs: tuple[Path, ...], objective: str | None, output: Path | None, exact: bool, as_json: bool) -> None:
    """Hold runs against a BASELINE: the first of them, or of a directory the one marked by "stepwatch tag --baseline".

    Says how they were made differently, at which step and in which tensor they cease to be the same bit for bit, where
    their curves part beyond noise, and which is better since when. A RUN may also be a directory of runs or a pattern.
    One RUN alone is held against the marked baseline of its directory.
    """
    from stepwatch.cli.render import console, print_json
    from stepwatch.probe.store.reader import Trace
    from stepwatch.rules.compare.runs import compare

    if output is not None and not output.absolute().parent.is_dir():
        errors.fail(f"{output}: there is no directory {output.parent}")
    errors.print_warnings_with_the_result()
    traces = [Trace(run) for run in _ordered(runs)]
    with busy("comparing runs"):
        comparison = compare(traces, objective)
    if output is not None:
        with errors.extra("report", "the page"):
            from stepwatch.cli.report.comparison import write_comparison
        with busy("writing the page"):
            write_comparison(traces, comparison, output)
    if as_json:
        print_json(comparison.to_json())
    elif output is not None:
        click.echo(output)
    else:
        _print(console(), comparison)
    for warning in dict.fromkeys(warning for trace in traces for warning in trace.warnings):
        click.echo(f"stepwatch: {warning}", err=True)
    differ = exact and not all(pair.identical for pair in comparison.pairs)
    raise SystemExit(errors.ISSUES_FOUND if differ else errors.NOTHING_FOUND)


def _ordered(places: Sequence[Path]) -> list[Path]:
    """The runs, the baseline first."""
    from stepwatch.probe.store.discovery import find_runs, is_run
    from stepwatch.probe.store.labels import baseline_of, is_baseline

    found = find_runs(places)
    if len(found) == 1:
        marked = baseline_of(found[0].absolute().parent)
        if marked is None or is_baseline(found[0]):
            errors.fail(
                f"got one run, {found[0]}; expected two or more, or one beside which "
                "stepwatch tag RUN --baseline has marked another"
            )
        return [marked, *found]
    marked = None if is_run(places[0]) else next(filter(is_baseline, found), None)
    return [marked, *(run for run in found if run != marked)] if marked else found


def _print(out: Console, comparison: Comparison) -> None:
    from rich.text import Text

    from stepwatch.cli.comparison import pair_lines

    _print_circumstances(out, comparison)
    _print_standings(out, comparison)
    for pair in comparison.pairs:
        out.print()
        out.print(Text(f"{pair.run} beside {pair.baseline}", "bold"))
        for line in pair_lines(pair):
            out.print(Text(line))
        _print_partings(out, pair)


def _print_circumstances(out: Console, comparison: Comparison) -> None:
    from rich.table import Table
    from rich.text import Text

    if not comparison.differences:
        out.print("The runs were made in the same way, as far as it was recorded.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("made differently", *comparison.runs):
        table.add_column(Text(heading), overflow="fold")
    for difference in comparison.differences:
        cells = [difference.key, *("-" if value is None else value for value in difference.values)]
        table.add_row(*map(Text, cells))
    out.print(table)


def _print_standings(out: Console, comparison: Comparison) -> None:
    from rich.table import Table
    from rich.text import Text

    from stepwatch.cli.comparison import objective_words

    objective = comparison.objective
    if objective is None:
        out.print("\nNo loss was recorded in all of them: --objective NAME says by what to judge.")
        return
    out.print()
    out.print(Text(f"by {objective_words(objective)}:"))
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "last", "at step", "best", "at step"):
        table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold")
    for each in comparison.standings:
        table.add_row(Text(each.run), f"{each.last:.6g}", str(each.last_step), f"{each.best:.6g}", str(each.best_step))
    out.print(table)


def _print_partings(out: Console, pair: Pair) -> None:
    from rich.table import Table
    from rich.text import Text

    scalars = [parting for parting in pair.partings if parting.module is None]
    layers = pair.layers()
    if not pair.partings:
        if not pair.identical:
            out.print("no curve parts beyond noise")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("parts beyond noise", "at step", "baseline", "run", "baseline, end", "run, end"):
        left = heading == "parts beyond noise"
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    for each in [*scalars, *layers[:_SHOWN_LAYERS]]:
        mode = f" [{each.mode}]" if each.module is None else ""
        numbers = [f"{value:.4g}" for value in (*each.values, *each.last_values)]
        table.add_row(Text(f"{each.name}{mode}"), str(each.step), *numbers)
    out.print(table)
    if len(layers) > _SHOWN_LAYERS:
        out.print(f"... and {len(layers) - _SHOWN_LAYERS} more layers; --json has all", style="dim")
