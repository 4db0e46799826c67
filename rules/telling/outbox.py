"""Messages on disk until they are delivered: a restart loses none, and sends none twice."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.layout import write_json
from stepwatch.probe.store.rankfile import read_json
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.sidecar.lease import Lease
from stepwatch.rules.telling.message import Message, item
from stepwatch.rules.telling.webhook import SendError

log = logging.getLogger("stepwatch")

_SETTLE_SECONDS = 2.0  # what is found within this time of the first finding is told with it
_PAUSES = (30.0, 60.0, 120.0, 300.0, 900.0)
_MAX_FINDINGS = 1000
_KEEP_SECONDS = 30 * 86400.0


class Channel(Protocol):
    """A way to tell.

    Attributes:
        name: of its folder in the outbox; the same after a restart, and holds no secret.
    """

    name: str

    def send(self, message: Message) -> str:
        """Deliver it, and return how that went, in words.

        Raises:
            SendError: it was not delivered.
        """


class Outbox:
    """Findings that wait to be told through one channel.

    A finding is told once, under its key. What is found within two seconds is one message; after a message the next
    waits half a minute, then longer, up to a quarter of an hour while more keeps coming, and holds all that has come
    by then. A message that is not delivered is tried again with the same pauses, and keeps its id.

    ``waiting/KEY.json`` is a finding to be told, ``sending.json`` the message under way, and ``sent/KEY`` says that a
    finding was told: at any moment one of them knows it.

    Args:
        folder: the outbox's directory.
        channel: where the messages go.
    """

    def __init__(self, folder: Path, channel: Channel) -> None:
        self._folder = folder / channel.name
        self._channel = channel
        self._lease = Lease(self._folder)
        self._sent_at: float | None = None
        self._streak = 0
        self._pruned = False
        for part in ("waiting", "sent"):
            (self._folder / part).mkdir(parents=True, exist_ok=True)

    @property
    def name(self) -> str:
        """The channel's."""
        return self._channel.name

    @property
    def waiting(self) -> int:
        """How many findings have not been told."""
        return len(self._waiting())

    def put(self, key: str, item: dict[str, Any]) -> bool:
        """Keep a finding until it is told; False where it is here, or was told before.

        Args:
            key: identifies it.
            item: see :func:`stepwatch.rules.telling.message.item`.

        Raises:
            OSError: the outbox cannot be written.
        """
        waiting, sent = self._folder / "waiting" / f"{key}.json", self._folder / "sent" / key
        if sent.exists() or waiting.exists():
            return False
        write_json(waiting, item)
        return True

    def deliver(self, *, now: bool = False) -> None:
        """Send what is due; of several processes with this outbox one does.

        Args:
            now: whether to send what waits without a pause, because the process ends.

        Raises:
            OSError: the outbox cannot be read or written.
        """
        if not self._lease.acquire():
            return
        self._prune()
        content = read_json(self._folder / "sending.json") or self._collect(now)
        if not content or not (now or self._is_due(content)):
            return
        keys = [str(key) for key in content["keys"]]
        items = [read_json(self._folder / "waiting" / f"{key}.json") for key in keys]
        items = [item for item in items if item]
        try:
            if items:
                log.info("%s: %s", self.name, self._channel.send(Message(str(content["id"]), tuple(items))))
        except SendError as error:
            self._failed(content, error)
            if not error.final:
                return
        self._streak = self._streak + 1 if self._recently() else 0
        self._sent_at = time.monotonic()
        # In this order: until it is known that all was told, the message can be sent again as it was.
        for key in keys:
            (self._folder / "sent" / key).touch()
        (self._folder / "sending.json").unlink(missing_ok=True)
        for key in keys:
            (self._folder / "waiting" / f"{key}.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process deliver."""
        self._lease.release()

    def _waiting(self) -> list[str]:
        return sorted(name for name in os.listdir(self._folder / "waiting") if name.endswith(".json"))

    def _collect(self, now: bool) -> dict[str, Any]:
        """A message of all that waits, if it is time for one."""
        told = set(os.listdir(self._folder / "sent"))
        names = [name for name in self._waiting() if name.removesuffix(".json") not in told]
        if not names:
            return {}
        if not now:
            ages = [time.time() - (self._folder / "waiting" / name).stat().st_mtime for name in names]
            pause = _PAUSES[min(self._streak, len(_PAUSES) - 1)]
            settled = max(ages) >= _SETTLE_SECONDS or min(ages) < 0  # a clock that was set back
            if not settled or (self._sent_at is not None and time.monotonic() - self._sent_at < pause):
                return {}
        keys = [name.removesuffix(".json") for name in names[:_MAX_FINDINGS]]
        content: dict[str, Any] = {"id": uuid.uuid4().hex, "keys": keys, "tries": 0, "again_at": 0.0}
        write_json(self._folder / "sending.json", content)
        return content

    def _recently(self) -> bool:
        """Whether more has come soon after the message before."""
        pause = _PAUSES[min(self._streak, len(_PAUSES) - 1)]
        return self._sent_at is not None and time.monotonic() - self._sent_at < 2 * pause

    @staticmethod
    def _is_due(content: dict[str, Any]) -> bool:
        left = float(content["again_at"]) - time.time()
        return left <= 0 or left > _PAUSES[-1]  # a clock that was set back

    def _failed(self, content: dict[str, Any], error: SendError) -> None:
        if error.final:
            log.error("%s: %d findings cannot be told: %s", self.name, len(content["keys"]), error)
            return
        tries = int(content["tries"]) + 1
        pause = min(5.0 * 2 ** (tries - 1), _PAUSES[-1])
        log.warning("%s: not delivered, try %d: %s; again in %g s", self.name, tries, error, pause)
        write_json(self._folder / "sending.json", {**content, "tries": tries, "again_at": time.time() + pause})

    def _prune(self) -> None:
        """Forget what was told a month ago, and what a process that died has left of what was told."""
        if self._pruned or (self._folder / "sending.json").exists():
            return
        self._pruned = True
        for name in self._waiting():
            if (self._folder / "sent" / name.removesuffix(".json")).exists():
                (self._folder / "waiting" / name).unlink()
        for entry in os.scandir(self._folder / "sent"):
            if time.time() - entry.stat().st_mtime > _KEEP_SECONDS:
                os.unlink(entry)


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
        """Tell through every channel that a run cannot be stopped.

        Raises:
            OSError: an outbox cannot be written.
        """
        failure = Finding("StopFailed", Severity.ERROR, 0, 0, (), 0.0, 0.0, text, "stop it by hand")
        for outbox in self._outboxes.values():
            outbox.put(f"stop-failed-{uuid.uuid4().hex}", item(run_dir, failure))

    @property
    def waiting(self) -> int:
        """How many findings have not been told."""
        return sum(outbox.waiting for outbox in self._outboxes.values())

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

    def _deliver(self, now: bool) -> None:
        for outbox in list(self._outboxes.values()):
            try:
                outbox.deliver(now=now)
            except (OSError, TraceError) as error:
                log.warning("%s: %s", outbox.name, error)
