"""Directories of smdebug as runs of ours, for the length of the process; they grow with their sources."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from stepwatch.probe.store.smdebug.importing import Importer

_growing: dict[Path, Importer] = {}


@functools.cache
def converted(source: Path) -> Path:
    """Directory of a run with what is in ``source``; removed at exit.

    Raises:
        TraceError: it cannot be read.
    """
    folder = Path(tempfile.mkdtemp(prefix="stepwatch-"))
    run = folder / source.name
    atexit.register(_remove, run)
    _growing[run] = Importer(source, run)
    refresh(run)
    return run


def refresh(run: Path) -> None:
    """Take what came meanwhile into the source of a converted run; nothing for any other.

    Raises:
        TraceError: what came cannot be read.
    """
    importer = _growing.get(run)
    if importer is None:
        return
    live = importer.directory.live()  # asked first: what is read then is all there is
    try:
        importer.poll()
    except BaseException:
        del _growing[run]
        raise
    if not live:
        importer.finish()
        del _growing[run]


def _remove(run: Path) -> None:
    importer = _growing.pop(run, None)
    if importer is not None:
        importer.finish()
    shutil.rmtree(run.parent, ignore_errors=True)
