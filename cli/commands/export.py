"""``stepwatch export``."""

from __future__ import annotations

from pathlib import Path

import click

from stepwatch.cli import errors


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["smdebug"]), required=True, help="What to write.")
@errors.one_line_errors
def command(run: Path, destination: Path, form: str) -> None:
    """Write a RUN into a new directory, in a format of other tools.

    smdebug: whole tensors, scalars, and the statistics of all other tensors as saved reductions.
    """
    from stepwatch.probe.store.reader import Trace
    from stepwatch.probe.store.smdebug.exporting import export_smdebug

    count = export_smdebug(Trace(run), destination)
    click.echo(f"{destination}: {count} steps")
