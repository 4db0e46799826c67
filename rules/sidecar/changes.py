"""Wakes the sidecar when something below its directories may have changed."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType

import psutil
from watchdog.events import DirCreatedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

log = logging.getLogger("stepwatch")

# File systems that do not tell of what other machines write.
_SILENT = ("nfs", "cifs", "smb", "9p", "fuse", "lustre", "ceph", "gpfs", "beegfs", "gluster", "afs", "virtiofs")
_SETTLE_SECONDS = 0.05  # a flush writes several files
_ENDING_SECONDS = 0.25
_FLOOD = 200  # events in a second from which on asking is cheaper than being told
_MOST_FOLDERS = 500


def tells_of_changes(path: Path) -> bool:
    """Whether the file system that a directory is on has events for all that is written to it."""
    resolved = path.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    kind = next((mounts[parent] for parent in (resolved, *resolved.parents) if parent in mounts), "")
    return not kind.lower().startswith(_SILENT)


class Changes:
    """File events, and a clock where there are none: network file systems, FUSE, too many to be watched.

    A context manager.

    Args:
        directories: what to watch, at any depth.
        interval: seconds between looks where no event comes.
    """

    def __init__(self, directories: Sequence[Path], interval: float) -> None:
        self._directories = [each for each in directories if tells_of_changes(each) and not _is_large(each)]
        self._interval = interval
        self._changed = threading.Event()
        self._handler = _Waker(self._changed)
        self._observer = Observer()
        self.by_events = False

    def __enter__(self) -> Changes:
        # watchdog warns, with all that it watches, when a directory appears twice in the same moment.
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
        try:
            for directory in self._directories:
                kinds = [FileMovedEvent, DirCreatedEvent]
                self._observer.schedule(self._handler, str(directory), recursive=True, event_filter=kinds)
            self._observer.start()
            self.by_events = bool(self._directories)
        except OSError as error:
            log.warning("no file events (%s): looking every %g s instead", error.strerror or error, self._interval)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_events()

    def wait(self, busy: float, ending: Callable[[], bool] = lambda: False) -> None:
        """Return when something has changed, or it is time for the next look.

        Args:
            busy: seconds that the last look took; the pause is long enough that looking does not fill the time.
            ending: asked several times a second; True ends the wait.
        """
        until = time.monotonic() + max(self._interval - busy, busy / 4)
        while not ending() and (left := until - time.monotonic()) > 0:
            if self._changed.wait(min(left, _ENDING_SECONDS)):
                time.sleep(max(_SETTLE_SECONDS, busy))
                break
        self._changed.clear()
        if self.by_events and self._handler.flooded:
            log.info("more than %d file events a second: looking every %g s instead", _FLOOD, self._interval)
            self._end_events()

    def _end_events(self) -> None:
        if self.by_events:
            self.by_events = False
            self._observer.stop()
            self._observer.join()


class _Waker(FileSystemEventHandler):
    def __init__(self, changed: threading.Event) -> None:
        self._changed = changed
        self._second = 0
        self._count = 0
        self.flooded = False

    def on_any_event(self, event: FileSystemEvent) -> None:
        """A file has got its final name, or a directory has appeared."""
        second = int(time.monotonic())
        self._count = self._count + 1 if second == self._second else 1
        self._second = second
        self.flooded |= self._count > _FLOOD
        self._changed.set()


def _is_large(directory: Path) -> bool:
    """Whether a directory holds more folders than are worth to be watched each."""
    folders = sum(1 for _ in islice(os.walk(directory), _MOST_FOLDERS + 1))
    return folders > _MOST_FOLDERS
