"""Directories of smdebug as runs of ours, for the length of the process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from stepwatch.probe.store.smdebug.importing import import_smdebug


@functools.cache
def converted(source: Path) -> Path:
    """Directory of a run with what was in ``source`` when it was first asked for; removed at exit.

    Raises:
        TraceError: it cannot be read.
    """
    folder = Path(tempfile.mkdtemp(prefix="stepwatch-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run = folder / source.name
    import_smdebug(source, run)
    return run
