"""Finds runs: directories themselves, those below a directory, and those that a pattern matches."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.smdebug.profiler import is_importable

_MARKS = frozenset(("collections", "index", "system", "framework"))


def is_run(path: Path) -> bool:
    """Whether a directory says that it is a run, or that smdebug or SageMaker's profiler wrote it."""
    return (path / "run.json").is_file() or is_importable(path)


def runs_below(folder: Path, *, of_smdebug: bool = False) -> Iterator[Path]:
    """Runs in a directory at any depth, in the order of their names; a run is not searched for others.

    Args:
        folder: the directory.
        of_smdebug: with directories that smdebug wrote.
    """
    for path, folders, files in os.walk(folder):
        if "run.json" in files or (of_smdebug and _MARKS.intersection(folders) and is_importable(Path(path))):
            folders.clear()
            yield Path(path)
        folders.sort()


def find_runs(places: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Runs in the order in which they are named, each once.

    Args:
        places: runs, directories that hold runs at any depth, or patterns of these (``runs/*/seed-?``; ``**``
            spans folders). What a pattern matches that holds no run is passed over.

    Raises:
        TraceError: a place that does not exist, or holds no run.
    """
    found: dict[Path, None] = {}
    for place in places:
        path = Path(place)
        runs = [path] if is_run(path) else list(_search(path))
        if not runs:
            raise TraceError(f"{path}: {_lack(path)}")
        found.update(dict.fromkeys(runs))
    return list(found)


def _lack(path: Path) -> str:
    if path.is_dir():
        return "holds no run; expected the directory of a run, or of runs"
    if path.exists():
        return "is a file; expected the directory of a run"
    return "matches no run" if glob.has_magic(str(path)) else "no such directory"


def _search(path: Path) -> Iterator[Path]:
    if path.exists():
        yield from runs_below(path, of_smdebug=True)
    elif glob.has_magic(str(path)):
        for match in sorted(glob.glob(str(path), recursive=True)):
            yield from runs_below(Path(match), of_smdebug=True)
