"""A folder of this machine and one in an object store, kept alike.

The training job writes to a local folder, from which files are copied to the store when they are there, and
whoever reads a run in the store reads a local copy. Both are a :class:`Replica`, which remembers what it has
copied in a file beside, so that a replica that is opened again, after a crash say, goes on where it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from stepwatch.probe.store.errors import TraceError, first_line
from stepwatch.probe.store.layout import LABELS_FILE, write_json
from stepwatch.probe.store.rankfile import read_json

STATE_FILE = ".replica.json"
_LOCK_FILE = ".replica.lock"
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_CHUNK = 8 << 20
_ASKED = (["control", "stop.json"], ["control", "recent.json"])
_COPIES = "copies"

Stamp = list[int]
Choice = Callable[[str], bool]


class _Entry(NamedTuple):
    """What a file was when it was alike on both sides: [bytes, modification time in ns] here and there."""

    here: Stamp
    there: Stamp


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is in an object store (``s3://bucket/run``) rather than in the file system."""
    return bool(_URL.match(os.fspath(place)))


def replica_folder(url: str, purpose: str) -> Path:
    """The local folder of a URL: ``"spool"`` for what is written there, ``"copies"`` for what is read.

    Below ``$STEPWATCH_CACHE``, or ``stepwatch`` in the user's cache directory.
    """
    cache = os.environ.get("STEPWATCH_CACHE")
    base = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stepwatch"
    plain = url.partition("?")[0].rstrip("/")
    return base / purpose / f"{posixpath.basename(plain)}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


class Replica:
    """A local folder and its counterpart in an object store.

    Args:
        url: of any file system that pyarrow or an installed fsspec knows; options in its query, for S3
            ``region``, ``scheme`` and ``endpoint_override``.
        folder: the local folder; made if it is missing.

    Raises:
        TraceError: no such file system is known, or the URL is not understood.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self._system, self._base = open_store(url)
        folder.mkdir(parents=True, exist_ok=True)

    def push(self, chosen: Choice, order: Callable[[str], Any] = str) -> int:
        """Copy what has changed here to the store, and remove there what was pushed once and is gone here.

        Args:
            chosen: whether a file, by its path relative to the folder, is meant.
            order: key by which files are copied one after another.

        Returns:
            How many files were copied or removed.

        Raises:
            OSError: the store cannot be reached, or refuses.
        """
        done = 0
        with self._state() as state:
            here = {path: stamp for path, stamp in self._files_here() if chosen(path)}
            for path in sorted((p for p, stamp in here.items() if _here(state, p) != stamp), key=order):
                with suppress(FileNotFoundError):  # joined with others meanwhile
                    state[path] = _Entry(here[path], self._upload(path))
                    done += 1
            for path in [p for p in state if chosen(p) and p not in here]:
                with suppress(FileNotFoundError):
                    self._system.delete_file(f"{self._base}/{path}")
                del state[path]
                done += 1
        return done

    def pull(self, chosen: Choice, below: str = "") -> int:
        """Copy what has changed in the store to here, and remove here what was pulled once and is gone there.

        What has changed here as well stays: it is to be pushed.

        Args:
            chosen: whether a file, by its path relative to the folder, is meant.
            below: the only subfolder that is looked at.

        Raises:
            OSError: the store cannot be reached, or refuses.
        """
        done = 0
        with self._state() as state:
            # Rows of `steps` commit those of the other tables: what is listed later holds theirs.
            committing = {path: stamp for path, stamp in self._files_there("steps") if not below}
            there = {path: stamp for path, stamp in self._files_there(below) if not path.startswith("steps/")}
            there |= committing
            for path, stamp in there.items():
                known = state.get(path)
                if not chosen(path) or (known is not None and known.there == stamp):
                    continue
                local = _stamp(self.folder / path)
                if local is not None and (known is None or known.here != local):
                    continue
                with suppress(FileNotFoundError):
                    self._download(path, stamp[1])
                    state[path] = _Entry(_stamp(self.folder / path) or [], stamp)
                    done += 1
            for path in [p for p in state if chosen(p) and p.startswith(below) and p not in there]:
                (self.folder / path).unlink(missing_ok=True)
                del state[path]
                done += 1
        return done

    def waiting(self, chosen: Choice) -> list[str]:
        """Files that have changed here and are not in the store yet."""
        with self._state() as state:
            return [path for path, stamp in self._files_here() if chosen(path) and _here(state, path) != stamp]

    def read_there(self, path: str) -> bytes | None:
        """A small file of the store, or None where there is none."""
        try:
            with self._system.open_input_stream(f"{self._base}/{path}") as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None
        except pa.ArrowException as error:
            raise OSError(str(error)) from None

    def _files_here(self) -> Iterator[tuple[str, Stamp]]:
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                if not name.startswith(".") and not name.endswith(".lock") and (stamp := _stamp(path)) is not None:
                    yield path.relative_to(self.folder).as_posix(), stamp

    def _files_there(self, below: str) -> list[tuple[str, Stamp]]:
        base = f"{self._base}/{below}".rstrip("/")
        try:
            found = self._system.get_file_info(pafs.FileSelector(base, allow_not_found=True, recursive=True))
        except pa.ArrowException as error:
            raise OSError(str(error)) from None
        return [
            (info.path[len(self._base) + 1 :], [info.size or 0, info.mtime_ns or 0])
            for info in found
            if info.type is pafs.FileType.File and _is_within(info.path[len(self._base) + 1 :])
        ]

    def _upload(self, path: str) -> Stamp:
        target = f"{self._base}/{path}"
        try:
            with (self.folder / path).open("rb") as source:
                if self._system.type_name != "s3":  # which has no folders
                    self._system.create_dir(posixpath.dirname(target), recursive=True)
                with self._system.open_output_stream(target) as sink:
                    shutil.copyfileobj(source, sink, _CHUNK)
            info = self._system.get_file_info(target)
        except pa.ArrowException as error:
            raise OSError(str(error)) from None
        return [info.size or 0, info.mtime_ns or 0]

    def _download(self, path: str, changed_ns: int) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with self._system.open_input_stream(f"{self._base}/{path}") as source, beside.open("wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
            if changed_ns:
                os.utime(beside, ns=(changed_ns, changed_ns))  # by its age it is told whether a run lives
            os.replace(beside, target)
        except pa.ArrowException as error:
            raise OSError(str(error)) from None
        finally:
            beside.unlink(missing_ok=True)

    @contextmanager
    def _state(self) -> Iterator[dict[str, _Entry]]:
        """What was copied so far; one process of this machine at a time has it."""
        with (self.folder / _LOCK_FILE).open("wb") as lock:
            _lock(lock)
            known = read_json(self.folder / STATE_FILE).get("files", {})
            state = {path: _Entry(*entry) for path, entry in known.items()}
            before = dict(state)
            try:
                yield state
            finally:
                if state != before:
                    write_json(self.folder / STATE_FILE, {"url": self.url, "files": state})


def local_copy(url: str) -> Path:
    """The folder to which what is in the store below a URL has now been copied.

    Raises:
        TraceError: nothing is there, or it cannot be reached.
    """
    replica = Replica(url, replica_folder(url, _COPIES))
    try:
        replica.pull(_everything)
    except OSError as error:
        raise TraceError(f"{url}: cannot be read: {first_line(error)}") from None
    if not (replica.folder / STATE_FILE).exists():
        raise TraceError(f"{url}: nothing is there; expected a run, or runs below it")
    return replica.folder


def refresh(folder: Path) -> None:
    """Bring a folder up to date that lies in a copy of something in a store, and hand on what was asked of the job.

    Any other folder is left alone.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    for top in (folder, *folder.parents):
        if _is_copy(top):
            replica = Replica(str(read_json(top / STATE_FILE)["url"]), top)
            replica.push(_is_asked)
            replica.pull(_everything)


def url_of(folder: Path) -> str | None:
    """The URL of what a folder is a copy of; None where it is no copy."""
    for top in (folder, *folder.parents):
        if _is_copy(top):
            plain, mark, options = str(read_json(top / STATE_FILE)["url"]).partition("?")
            below = folder.relative_to(top).as_posix()
            return plain.rstrip("/") + ("" if below == "." else f"/{below}") + mark + options
    return None


def in_copy(folder: Path) -> bool:
    """Whether a folder lies in a copy of something in a store."""
    return any(_is_copy(top) for top in (folder, *folder.parents))


def _is_copy(folder: Path) -> bool:
    return folder.parent.name == _COPIES and (folder / STATE_FILE).exists()


def _everything(path: str) -> bool:
    return True


def _is_asked(path: str) -> bool:
    """Whether a file of a run is written by those who read it."""
    parts = path.split("/")
    return "findings" in parts[:-1] or parts[-2:] in _ASKED or parts[-1] == LABELS_FILE


def open_store(url: str) -> tuple[pafs.FileSystem, str]:
    """The file system that a URL is of, and the path within it.

    Raises:
        TraceError: no such file system is known, or the URL is not understood.
    """
    try:
        system, base = pafs.FileSystem.from_uri(url)
        return system, base.rstrip("/")
    except (pa.ArrowException, ValueError, OSError) as error:
        try:
            from fsspec.core import url_to_fs

            system, base = url_to_fs(url)
        except (ImportError, ValueError):
            raise TraceError(f"{url}: {first_line(error)}") from None
        return pafs.PyFileSystem(pafs.FSSpecHandler(system)), base.rstrip("/")


def _lock(file: BinaryIO) -> None:
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _here(state: dict[str, _Entry], path: str) -> Stamp | None:
    known = state.get(path)
    return known.here if known is not None else None


def _is_within(path: str) -> bool:
    """Whether a name from the store stays below the folder that it is copied to."""
    return (
        bool(path) and not path.startswith("/") and ".." not in path.split("/") and not Path(path).name.startswith(".")
    )
