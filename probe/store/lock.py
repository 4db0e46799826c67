"""One writer per rank."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from stepwatch.probe.store.errors import TraceError


class RankLock:
    """Holds a lock on RUN/ranks/rank=N.lock, which the system takes from a process that dies.

    Raises:
        TraceError: another process, or another hook of this one, holds it.
    """

    def __init__(self, run_dir: Path, rank: int) -> None:
        path = run_dir / "ranks" / f"rank={rank:05d}.lock"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise TraceError(
                f"{run_dir}: rank {rank} is being written by process {holder}; use another directory"
            ) from None
        except OSError:
            return  # a file system without locks
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let others write."""
        os.close(self._file)
