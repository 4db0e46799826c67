"""``stepwatch plot``."""

from __future__ import annotations

from pathlib import Path

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH


@click.command("plot")
@click.argument("name")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=RUN_PATH)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="PNG, SVG or PDF file; else the terminal.")
@click.option("--column", default="l2", show_default=True, help="Statistic of tensors: a column of stats, or rms.")
@click.option("--log", is_flag=True, help="Logarithmic values.")
@errors.one_line_errors
def command(name: str, runs: tuple[Path, ...], output: Path | None, column: str, log: bool) -> None:
    """Draw the scalars and tensors whose NAME a regular expression finds, of one run or several."""
    from stepwatch.cli.plotting import curves_of, figure, in_terminal
    from stepwatch.cli.render import console
    from stepwatch.probe.store.discovery import find_runs
    from stepwatch.probe.store.reader import Trace

    curves = curves_of([Trace(run) for run in find_runs(runs)], name, column)
    if output is not None:
        figure(curves, log=log).savefig(output, dpi=150)
        click.echo(output)
        return
    out = console()
    click.echo(in_terminal(curves, out.width, log=log, colors=out.is_terminal and not out.no_color))
