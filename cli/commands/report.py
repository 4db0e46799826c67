"""``stepwatch report``."""

from __future__ import annotations

from pathlib import Path

import click

from stepwatch.cli import errors
from stepwatch.cli.options import RULES, SETTINGS
from stepwatch.cli.progress import busy
from stepwatch.cli.runs import RUN_PATH


@click.command("report")
@click.argument("run", type=RUN_PATH)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; RUN/report.html by default.")
@RULES
@SETTINGS
@click.option("--open", "open_it", is_flag=True, help="Open it in the browser.")
@errors.one_line_errors
def command(run: Path, output: Path | None, rules: tuple[str, ...], settings: tuple[str, ...], open_it: bool) -> None:
    """Write one self-contained HTML file about a run."""
    from stepwatch.probe.store.reader import Trace
    from stepwatch.rules.catalogue import configure

    trace = Trace(run)
    with errors.extra("report", "the report"):
        from stepwatch.cli.report.page import write_report
    specs = configure(list(rules) or None, list(settings))
    with busy("writing the report"):
        written = write_report(trace, output or run / "report.html", specs)
    click.echo(written)
    if open_it:
        click.launch(str(written))
