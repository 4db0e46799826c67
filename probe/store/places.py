"""Where runs are: in directories of this machine, or in an object store."""

from __future__ import annotations

import fnmatch
import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from stepwatch.probe.store.discovery import find_runs
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.remote import is_url, open_store

_NOT_JUDGED = ("findings", "control", "notes.json", "report.html")


def find_places(places: Iterable[str | os.PathLike[str]]) -> list[Path | str]:
    """Runs in the order in which they are named, each once: directories, and URLs of those in an object store.

    Args:
        places: as for :func:`.discovery.find_runs`, or URLs of them; in a URL ``*`` stands for any part of a name.

    Raises:
        TraceError: a place that does not exist, holds no run, or cannot be reached.
    """
    found: dict[Path | str, None] = {}
    for place in places:
        text = os.fspath(place)
        runs: list[Path] | list[str] = _in_store(text) if is_url(text) else find_runs([place])
        found.update(dict.fromkeys(runs))
    return list(found)


def files_of(run: Path | str) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, time of the last change in ns) of the files of a run that rules look at.

    Raises:
        TraceError, OSError: it cannot be read.
    """
    if isinstance(run, Path):
        for folder, _, names in os.walk(run):
            for name in names:
                path = Path(folder, name)
                relative = path.relative_to(run).as_posix()
                if _is_judged(relative):
                    status = path.stat()
                    yield relative, status.st_size, status.st_mtime_ns
        return
    system, base = open_store(run)
    for info in _listed(run, system, base, recursive=True):
        relative = info.path[len(base) + 1 :]
        if info.type is pafs.FileType.File and _is_judged(relative):
            yield relative, info.size or 0, info.mtime_ns or 0


def _is_judged(path: str) -> bool:
    first = path.split("/")[0]
    return (
        first not in _NOT_JUDGED
        and not any(part.startswith(".") for part in path.split("/"))
        and not path.endswith(".lock")
    )


def _in_store(url: str) -> list[str]:
    """URLs of the runs that a URL names, holds or matches."""
    plain, mark, options = url.partition("?")
    parts = plain.rstrip("/").split("/")
    fixed = next((at for at, part in enumerate(parts) if "*" in part), len(parts))
    if fixed < 4 and fixed < len(parts):
        raise TraceError(f"{url}: expected * after the name of the bucket")
    root = "/".join(parts[:fixed])
    system, base = open_store(root + mark + options)
    matches = [""]
    for pattern in parts[fixed:]:
        matches = [
            posixpath.join(match, name)
            for match in matches
            for name in sorted(_folders(url, system, posixpath.join(base, match)))
            if fnmatch.fnmatchcase(name, pattern)
        ]
    runs = [run for match in matches for run in _runs_below(url, system, posixpath.join(base, match).rstrip("/"))]
    if not runs:
        raise TraceError(
            f"{url}: {'matches no run' if fixed < len(parts) else 'nothing is there; expected a run, or runs below it'}"
        )
    return [f"{root}{run[len(base) :]}{mark}{options}" for run in runs]


def _runs_below(url: str, system: pafs.FileSystem, folder: str) -> list[str]:
    if system.get_file_info(f"{folder}/run.json").type is pafs.FileType.File:
        return [folder]
    files = (info.path for info in _listed(url, system, folder, recursive=True))
    found = sorted(posixpath.dirname(path) for path in files if posixpath.basename(path) == "run.json")
    return [run for run in found if not any(run.startswith(f"{other}/") for other in found)]


def _folders(url: str, system: pafs.FileSystem, folder: str) -> list[str]:
    listed = _listed(url, system, folder, recursive=False)
    return [posixpath.basename(info.path) for info in listed if info.type is pafs.FileType.Directory]


def _listed(url: str, system: pafs.FileSystem, folder: str, *, recursive: bool) -> list[pafs.FileInfo]:
    try:
        found: list[pafs.FileInfo] = system.get_file_info(
            pafs.FileSelector(folder, allow_not_found=True, recursive=recursive)
        )
        return found
    except (OSError, pa.ArrowException) as error:
        raise TraceError(f"{url}: cannot be read: {str(error).splitlines()[0]}") from None
