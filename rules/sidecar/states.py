"""What a sidecar knows of runs, kept so that one that is started again goes on near where the last one was.

Nothing depends on it: what is missing, damaged, or of other rules is found again from a run's first step. It holds
Python objects (pickles), so it is never read from a run, which others write, but only from a folder that nobody but
this user can write.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import platform
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stepwatch.probe.store import reader
from stepwatch.probe.store.discovery import is_run
from stepwatch.probe.store.reader import Trace
from stepwatch.rules import catalogue
from stepwatch.rules.catalogue import RuleSpec

log = logging.getLogger("stepwatch")

_SHARE = 0.003  # of the time may be spent on keeping what is known
_REST_SECONDS = 30.0  # between two times that a run's is kept
_MOST_BYTES = 256 << 20
_SUFFIX = ".state"


class States:
    """A folder with what is known of each run.

    Args:
        state_dir: the folder is in there.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "known"
        self._usable: bool | None = None
        self._next = 0.0
        self._kept: dict[Path, float] = {}

    def due(self, runs: Iterable[Path]) -> Path | None:
        """The run of which what is known was not kept for longest, if it is time for one."""
        now = time.monotonic()
        if now < self._next:
            return None
        path = min(runs, key=lambda run: self._kept.setdefault(run, now), default=None)
        return path if path is not None and now - self._kept[path] >= _REST_SECONDS else None

    def keep(self, trace: Trace, specs: Sequence[RuleSpec], state: Callable[[], Any]) -> None:
        """Keep what is known of a run, as far as that is possible; ``state`` says None where it cannot be told now."""
        began = time.monotonic()
        try:
            known = state() if self._can_be_used() else None
            if known is not None:
                self._write(trace, specs, known)
        except Exception as error:  # rules of the user's may hold anything
            log.debug("%s: what is known of it cannot be kept: %s", trace.source, error)
        now = time.monotonic()
        self._kept[trace.source] = now
        self._next = now + (now - began) / _SHARE

    def known(self, trace: Trace, specs: Sequence[RuleSpec]) -> Any:
        """What was kept of a run that was judged by the same rules of the same code, and has not been started again
        since; None where there is nothing."""
        try:
            if not self._can_be_used():
                return None
            header, content = _read(self._path(trace.source))
            if (header["run_id"], header["judged_by"]) != (trace.info.run_id, _judged_by(specs)):
                return None
            if any(len(trace.attempts(int(rank)).entries) != count for rank, count in header["attempts"].items()):
                return None  # steps that were judged may have been replaced
            if zlib.crc32(content) != header["crc32"]:
                return None
            return pickle.loads(pa.decompress(content, header["bytes"], "zstd"))
        except Exception as error:
            if not isinstance(error, FileNotFoundError):
                log.debug("%s: what was known of it cannot be read: %s", trace.source, error)
            return None

    def forget(self, run: Path) -> None:
        """The run has gone."""
        self._kept.pop(run, None)
        with suppress(OSError):
            self._path(run).unlink()

    def forget_gone(self) -> None:
        """Drop what is known of runs that have gone meanwhile."""
        if not self._folder.is_dir() or not self._can_be_used():
            return
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                gone = not is_run(Path(_read(path)[0]["run"]))
            except (OSError, ValueError, KeyError):
                gone = True
            if gone:
                with suppress(OSError):
                    path.unlink()

    def _write(self, trace: Trace, specs: Sequence[RuleSpec], known: Any) -> None:
        buffer = io.BytesIO()
        _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(known)
        plain = buffer.getvalue()
        if len(plain) > _MOST_BYTES:
            raise ValueError(f"it takes {len(plain)} bytes")
        content = pa.compress(plain, "zstd", asbytes=True)
        header: dict[str, Any] = {"run": str(trace.source), "run_id": trace.info.run_id, "judged_by": _judged_by(specs)}
        header["attempts"] = {rank: len(trace.attempts(rank).entries) for rank in trace.ranks}
        header |= {"bytes": len(plain), "crc32": zlib.crc32(content)}
        path = self._path(trace.source)
        beside = path.with_suffix(f".{os.getpid()}")
        try:
            # Not flushed to the disk: what a machine loses when it fails is found again.
            beside.write_bytes(json.dumps(header).encode() + b"\n" + content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def _path(self, run: Path) -> Path:
        return self._folder / f"{hashlib.sha1(str(run.absolute()).encode()).hexdigest()[:20]}{_SUFFIX}"

    def _can_be_used(self) -> bool:
        """Whether nobody else can write there; it is made if it is missing."""
        if self._usable is None:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                about = self._folder.lstat()
                self._usable = (
                    stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o022
                )
                if not self._usable:
                    log.warning("%s: others can write there; runs are judged from their beginning", self._folder)
            except OSError as error:
                log.debug("%s cannot be used: %s", self._folder, error)
                return False
        return self._usable


class _Pickler(pickle.Pickler):
    def reducer_override(self, each: Any) -> Any:
        """A rule that reads a trace of its own would go on from files that it has open."""
        if isinstance(each, Trace):
            raise pickle.PicklingError("a rule holds a trace")
        return NotImplemented


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        if os.fstat(file.fileno()).st_uid != os.geteuid():
            raise ValueError("it belongs to somebody else")
        header = json.loads(file.readline())
        return header, file.read()


def _judged_by(specs: Sequence[RuleSpec]) -> str:
    """The rules, their parameters, and the code that they are."""
    said = "\n".join(f"{spec!r} {_code_of_file(sys.modules[spec.rule.__module__].__file__ or '')}" for spec in specs)
    return hashlib.sha1(f"{_code()}\n{said}".encode()).hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    """What all that takes part in judging is made of."""
    folders = (Path(catalogue.__file__).parent, Path(reader.__file__).parent)
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return f"{platform.python_version()} {np.__version__} {[_code_of_file(str(path)) for path in files]}"


@lru_cache(maxsize=1024)
def _code_of_file(path: str) -> int:
    try:
        return zlib.crc32(Path(path).read_bytes())
    except OSError:
        return 0
