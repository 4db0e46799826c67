"""Whether something may have been written since one last asked, by what the file system says of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from stepwatch.probe.store.layout import rank_folder
from stepwatch.probe.store.tail import tail_file

# A folder that was changed twice within one tick of the file system's clock looks as if it had been changed once.
_YOUNG_SECONDS = 2.0


class Stamps:
    """Remembers when folders were changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, float]] = {}

    def changed(self, folder: str) -> bool:
        """Whether something may have appeared in a folder since this was last asked."""
        try:
            stamp = os.stat(folder).st_mtime_ns
        except FileNotFoundError:
            return self._known.pop(folder, None) is not None
        now = time.monotonic()
        known = self._known.get(folder)
        if known is None or known[0] != stamp:
            self._known[folder] = (stamp, now)
            return True
        return now - known[1] < _YOUNG_SECONDS


class RankStamps:
    """Remembers how far a rank had written: its tail tells, and where that does not, the folder that commits steps.

    Args:
        run_dir: the run's directory.
        rank: the rank.
    """

    def __init__(self, run_dir: Path, rank: int) -> None:
        self._tail_path = str(tail_file(run_dir, rank))
        self._folder_path = str(rank_folder(run_dir, "steps", rank))
        self._stamp = (0, 0, 0)
        self._folder = Stamps()

    def changed(self) -> bool:
        """Whether it may have written something since this was last asked."""
        try:
            tail = os.stat(self._tail_path)
            stamp = (tail.st_mtime_ns, tail.st_size, os.stat(self._folder_path).st_mtime_ns)
        except FileNotFoundError:
            return self._folder.changed(self._folder_path)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        return True
