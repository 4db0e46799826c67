"""Directories of smdebug as runs of ours, for the length of the process; they grow with their sources."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from stepwatch.probe.store.smdebug.directory import is_smdebug_directory
from stepwatch.probe.store.smdebug.importing import Importer
from stepwatch.probe.store.smdebug.profiling import ProfilerImporter

_growing: dict[Path, Importer | ProfilerImporter] = {}


@functools.cache
def converted(source: Path) -> Path:
    """Directory of a run with what is in ``source``; removed at exit.

    Raises:
        TraceError: it cannot be read.
    """
    folder = Path(tempfile.mkdtemp(prefix="stepwatch-"))
    run = folder / source.name
    atexit.register(_remove, run)
    _growing[run] = importer(source, run)
    refresh(run)
    return run


def importer(source: Path, destination: Path) -> Importer | ProfilerImporter:
    """What turns a directory that smdebug, or SageMaker's profiler, wrote into a run.

    Raises:
        TraceError: the destination holds something.
    """
    kind = Importer if is_smdebug_directory(source) else ProfilerImporter
    return kind(source, destination)


def refresh(run: Path) -> None:
    """Take what came meanwhile into the source of a converted run; nothing for any other.

    Raises:
        TraceError: what came cannot be read.
    """
    growing = _growing.get(run)
    if growing is None:
        return
    live = growing.directory.live()  # asked first: what is read then is all there is
    try:
        growing.poll()
    except BaseException:
        del _growing[run]
        raise
    if not live:
        growing.finish()
        del _growing[run]


def _remove(run: Path) -> None:
    growing = _growing.pop(run, None)
    if growing is not None:
        growing.finish()
    shutil.rmtree(run.parent, ignore_errors=True)
