"""``stepwatch import``."""

from __future__ import annotations

from pathlib import Path

import click

from stepwatch.cli import errors


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@errors.one_line_errors
def command(source: Path, run: Path) -> None:
    """Turn a directory that smdebug wrote into a RUN.

    Nothing of it is lost: whole tensors, saved reductions, shapes, modes, workers, collections. Every command also
    reads such a directory as it is; a run is smaller and quicker to read.
    """
    from stepwatch.probe.store.reader import Trace
    from stepwatch.probe.store.smdebug.importing import import_smdebug

    import_smdebug(source, run)
    trace = Trace(run)
    steps = trace.table("steps", columns=["step"])
    ranks = len(trace.ranks)
    click.echo(f"{run}: {steps.num_rows} saved steps of {ranks} worker{'s' if ranks != 1 else ''}")
