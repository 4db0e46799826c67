"""``stepwatch import``."""

from __future__ import annotations

from pathlib import Path

import click

from stepwatch.cli import errors
from stepwatch.cli.progress import busy


@click.command("import")
@click.argument("sources", metavar="SOURCE... RUN", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", "run", type=click.Path(path_type=Path), help="The RUN, instead of as the last argument.")
@errors.one_line_errors
def command(sources: tuple[Path, ...], run: Path | None) -> None:
    """Turn what other tools wrote into a RUN.

    SOURCE is a directory that smdebug, or SageMaker's profiler, wrote; a log of scalars: a CSV or JSONL file, the
    trainer_state.json of a Hugging Face Trainer, a TensorBoard event file or a directory of them, an offline run of
    W&B; or what torch.profiler exported (.json, .json.gz), one file for each rank, or a directory of them.

    Nothing of what smdebug saved is lost: whole tensors, saved reductions, shapes, modes, workers, collections. Every
    command also reads such a directory as it is; a run is smaller and quicker to read.
    """
    if run is None:
        *rest, run = sources
        sources = tuple(rest)
    if not sources:
        errors.fail("import takes what is imported, and the run that it becomes: SOURCE... RUN")
    with busy("importing"):
        said = _import(sources, run)
    click.echo(f"{run}: {said}")


def _import(sources: tuple[Path, ...], run: Path) -> str:
    """What became of the sources, in words."""
    from stepwatch.probe.store.kineto.importing import import_kineto, kineto_files
    from stepwatch.probe.store.reader import Trace
    from stepwatch.probe.store.smdebug.directory import is_smdebug_directory
    from stepwatch.probe.store.smdebug.importing import import_smdebug
    from stepwatch.probe.store.smdebug.profiler import is_profiler_directory
    from stepwatch.probe.store.smdebug.profiling import ProfilerImporter
    from stepwatch.rules.scalar_logs import import_log

    if len(sources) == 1 and not is_smdebug_directory(sources[0]) and is_profiler_directory(sources[0]):
        profiled = ProfilerImporter(sources[0], run)
        profiled.poll()
        profiled.finish()
        trace = Trace(run)
        steps = trace.table("steps", columns=["step"]).num_rows
        nodes = _counted(len(trace.nodes), "node")
        return f"{steps} steps of {_counted(len(trace.ranks), 'process')}, samples of {nodes}"
    files = [kineto_files(source) for source in sources]
    if any(files):
        for source, found in zip(sources, files, strict=True):
            if not found:
                errors.fail(f"{source}: not a trace of torch.profiler, as others of them are")
        summaries = import_kineto([file for found in files for file in found], run)
        marked = sum(len(summary.steps) for summary in summaries)
        return f"{marked} steps of {_counted(len(summaries), 'rank')}; see stepwatch profile {run}"
    if len(sources) > 1:
        errors.fail(f"several sources are imported only of torch.profiler's traces; {sources[0]} is none")
    (source,) = sources
    if not is_smdebug_directory(source):
        return f"{import_log(source, run)} steps"
    import_smdebug(source, run)
    trace = Trace(run)
    saved = trace.table("steps", columns=["step"])
    return f"{saved.num_rows} saved steps of {_counted(len(trace.ranks), 'worker')}"


def _counted(number: int, what: str) -> str:
    plural = "es" if what.endswith("s") else "s"
    return f"{number} {what}{plural if number != 1 else ''}"
