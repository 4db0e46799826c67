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
    """Turn what other tools wrote into a RUN.

    SOURCE is a directory that smdebug wrote, or a log of scalars: a CSV or JSONL file, the trainer_state.json of a
    Hugging Face Trainer, a TensorBoard event file or a directory of them.

    Nothing of what smdebug saved is lost: whole tensors, saved reductions, shapes, modes, workers, collections. Every
    command also reads such a directory as it is; a run is smaller and quicker to read.
    """
    from stepwatch.probe.store.reader import Trace
    from stepwatch.probe.store.smdebug.directory import is_smdebug_directory
    from stepwatch.probe.store.smdebug.importing import import_smdebug
    from stepwatch.rules.scalar_logs import import_log

    if not is_smdebug_directory(source):
        steps = import_log(source, run)
        click.echo(f"{run}: {steps} steps")
        return
    import_smdebug(source, run)
    trace = Trace(run)
    saved = trace.table("steps", columns=["step"])
    ranks = len(trace.ranks)
    click.echo(f"{run}: {saved.num_rows} saved steps of {ranks} worker{'s' if ranks != 1 else ''}")
