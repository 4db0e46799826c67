"""Copies what a job records to an object store, from a folder of its machine where it is safe until it is there."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from stepwatch.probe.store.errors import first_line
from stepwatch.probe.store.layout import write_atomically
from stepwatch.probe.store.rankfile import read_json
from stepwatch.probe.store.remote import Replica, replica_folder

log = logging.getLogger("stepwatch")

HEARING_SECONDS = 8.0  # in which what one machine writes has reached the others
_PERIOD_SECONDS = 2.0
_CLOSING_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 30.0
_FIRST = ("run.json", "ranks", "tensors")
_LAST = ("steps", "end")


class Uploader:
    """Keeps a run in an object store up to date, in a thread beside the training.

    Files are copied when they are whole. While the store cannot be reached they stay in :attr:`folder`, and are
    copied when it can: later, when the job starts again, or by ``stepwatch upload``.

    Args:
        url: where the run is to be.
        first_of_node: whether this process copies for all of its machine; the others do when they end.

    Attributes:
        folder: where the job writes.

    Raises:
        TraceError: no such file system is known.
    """

    def __init__(self, url: str, *, first_of_node: bool) -> None:
        self._replica = Replica(url, replica_folder(url, "spool"))
        self.folder: Path = self._replica.folder
        self._url = url
        self._said = False
        self._joined = False
        self._refused = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stepwatch-upload", daemon=True)
        self._periodic = first_of_node
        self._note: Callable[[str], None] | None = None
        self._untold: list[str] = []
        self._try(self._join)

    def start(self, note: Callable[[str], None]) -> None:
        """Begin to copy.

        Args:
            note: told once when the store cannot be reached.
        """
        self._note = note
        for text in self._untold:
            note(text)
        if self._periodic:
            self._thread.start()

    def close(self) -> None:
        """Copy what is left; gives up after a minute, or ``$STEPWATCH_UPLOAD_SECONDS``."""
        seconds = float(os.environ.get("STEPWATCH_UPLOAD_SECONDS", _CLOSING_SECONDS))
        self._stopping.set()
        if self._periodic:
            self._thread.join(seconds)
        deadline = time.monotonic() + seconds
        while not self._try(self._exchange):
            if time.monotonic() > deadline or self._refused:
                left = len(self._replica.waiting(_all))
                log.warning("%s: %d files are not there yet; they are kept in %s", self._url, left, self.folder)
                return
            time.sleep(_PERIOD_SECONDS)

    def _run(self) -> None:
        pause = _PERIOD_SECONDS
        while not self._stopping.wait(pause):
            pause = _PERIOD_SECONDS if self._try(self._exchange) else min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _try(self, exchange: Callable[[], None]) -> bool:
        if self._refused:
            return False
        try:
            exchange()
        except OSError as error:
            if not self._said:
                self._said = True
                self._tell(
                    f"{self._url} cannot be reached ({first_line(error)}); what is recorded waits in {self.folder}"
                )
            return False
        self._said = False
        return True

    def _join(self) -> None:
        """Take over what earlier attempts, perhaps on another machine, have left."""
        self._replica.pull(lambda path: path.split("/")[0].partition("-")[0] in _STATE)
        self._joined = True

    def _exchange(self) -> None:
        if not self._joined:
            # The store could not be reached at first: what is there must be this run, not another of its name.
            there, here = self._replica.read_there("run.json"), read_json(self.folder / "run.json")
            if there is not None and here and str(here.get("run_id")) not in there.decode(errors="replace"):
                self._refused = True
                self._tell(f"{self._url} holds another run; this one stays in {self.folder}")
                return
            self._joined = True
        if not (self.folder / "run.json").exists():
            content = self._replica.read_there("run.json")  # rank 0's, on another machine
            if content is not None:
                write_atomically(self.folder / "run.json", content)
        self._replica.pull(_all, "control")
        self._replica.push(_all, _order)

    def _tell(self, text: str) -> None:
        log.warning("%s", text)
        if self._note is None:
            self._untold.append(text)
        else:
            self._note(text)


def finish_upload(url: str) -> int:
    """Copy what jobs of this machine have left behind; returns how many files.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    return Replica(url, replica_folder(url, "spool")).push(_all, _order)


_STATE = frozenset(("run.json", "notes.json", "tensors.json", "tensors", "ranks", "end", "control", "steps"))


def _all(path: str) -> bool:
    return True


def _order(path: str) -> tuple[int, str]:
    """What commits the rest comes last."""
    folder = path.split("/")[0]
    return (0 if folder.startswith(_FIRST) else 2 if folder in _LAST else 1), path
