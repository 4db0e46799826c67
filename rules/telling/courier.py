"""Delivers what waits to be told."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

from stepwatch.probe.store.errors import TraceError
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.telling.notice import Notice
from stepwatch.rules.telling.outbox import Channel, Outbox

log = logging.getLogger("stepwatch")


class Courier:
    """Delivers what is in some outboxes, in a thread.

    Args:
        folder: where the outboxes are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._outboxes: dict[str, Outbox] = {}
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def outbox(self, channel: Channel) -> Outbox:
        """The outbox of a channel.

        Raises:
            OSError: it cannot be made.
        """
        if channel.name not in self._outboxes:
            self._outboxes[channel.name] = Outbox(self._folder, channel)
        return self._outboxes[channel.name]

    def start(self) -> None:
        """Deliver from now on."""
        self._thread = threading.Thread(target=self._run, name="stepwatch-courier", daemon=True)
        self._thread.start()

    def shout(self, run_dir: Path, text: str) -> None:
        """Tell through every channel that a run cannot be stopped, whatever the hour.

        Raises:
            OSError: an outbox cannot be written.
        """
        failure = Finding("StopFailed", Severity.ERROR, 0, 0, (), 0.0, 0.0, text, "stop it by hand")
        notice = Notice.of(run_dir, failure, time.time())
        notice = replace(notice, id=f"{notice.id}-{uuid.uuid4().hex[:8]}")  # each failure is told
        for outbox in self._outboxes.values():
            outbox.put(notice)

    @property
    def waiting(self) -> int:
        """How many findings have not been told."""
        return sum(outbox.waiting for outbox in list(self._outboxes.values()))

    def close(self) -> None:
        """Try once to send what waits; what is not delivered now is by the next process with this outbox."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
        for outbox in self._outboxes.values():
            outbox.close()

    def _run(self) -> None:
        while not self._ending.wait(0.5):
            self._deliver(now=False)
        self._deliver(now=True)
        self._deliver(now=True)  # that what was told only now no longer holds

    def _deliver(self, now: bool) -> None:
        for outbox in list(self._outboxes.values()):
            try:
                outbox.deliver(now=now)
            except (OSError, TraceError) as error:
                log.warning("%s: %s", outbox.name, error)
