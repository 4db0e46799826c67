"""RUN/ranks/rank=N.json: the attempts of a rank, its counters and its notes."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwatch.probe.store.attempts import Attempts
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.layout import write_json


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        TraceError: the file holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise TraceError(f"{path}: holds a {type(content).__name__}; expected an object")
    return content


@dataclass(frozen=True)
class RankInfo:
    """What a rank has said of itself.

    Attributes:
        attempts: its starts.
        counters: dropped records, errors of the hook and of the writer.
        notes: what the hook could not record.
    """

    attempts: Attempts
    counters: dict[str, int]
    notes: list[str]


class RankFiles:
    """What the ranks of a run have said of themselves; a file is read again when it has changed.

    Args:
        run_dir: the run's directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "ranks"
        self._known: dict[int, tuple[tuple[int, int, int], RankInfo]] = {}

    def of(self, rank: int) -> RankInfo:
        """What a rank has said; nothing where it has no file.

        Raises:
            TraceError: the file is not as it should be.
        """
        path = f"{self._folder}/rank={rank:05d}.json"
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return RankInfo(Attempts([]), {}, [])
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        known = self._known.get(rank)
        if known is None or known[0] != stamp:
            content = read_json(Path(path))
            attempts = Attempts(content.get("attempts", []))
            info = RankInfo(attempts, dict(content.get("counters", {})), list(content.get("notes", [])))
            known = self._known[rank] = (stamp, info)
        return known[1]


class RankFile:
    """What a rank says of itself; saved when it has changed. Safe to use from several threads."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self._path = run_dir / "ranks" / f"rank={rank:05d}.json"
        known = read_json(self._path)
        self._attempts: list[dict[str, Any]] = list(known.get("attempts", []))
        self._counters: dict[str, int] = dict(known.get("counters", {}))
        self._notes: list[str] = list(known.get("notes", []))
        self._mutex = threading.Lock()
        self._changed = False

    def begin_attempt(self, identity: dict[str, Any]) -> int:
        """Add an attempt by this process and return its number."""
        with self._mutex:
            attempt = len(self._attempts)
            entry = {"attempt": attempt, "start_step": None, "started_ns": time.time_ns(), **identity}
            self._attempts.append(entry)
            self._changed = True
        return attempt

    def set_start_step(self, step: int) -> None:
        """First step of the attempt that is running."""
        with self._mutex:
            self._attempts[-1]["start_step"] = step
            self._changed = True

    def count(self, counter: str, n: int = 1) -> None:
        """Add to a counter."""
        with self._mutex:
            self._counters[counter] = self._counters.get(counter, 0) + n
            self._changed = True

    def note(self, text: str) -> bool:
        """Add a note; False where it was said before."""
        with self._mutex:
            if text in self._notes:
                return False
            self._notes.append(text)
            self._changed = True
            return True

    def save(self) -> None:
        """Write the file if anything has changed."""
        with self._mutex:
            if not self._changed:
                return
            content = {"attempts": self._attempts, "counters": self._counters, "notes": self._notes}
            write_json(self._path, content)
            self._changed = False
