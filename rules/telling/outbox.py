"""Messages on disk until they are delivered: a restart loses none, and sends none twice."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.layout import write_json
from stepwatch.probe.store.rankfile import read_json
from stepwatch.rules.sidecar.lease import Lease
from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.notice import Notice
from stepwatch.rules.telling.posting import SendError

log = logging.getLogger("stepwatch")

GATHER_SECONDS = 2.0
_PAUSES = (30.0, 60.0, 120.0, 300.0, 900.0)
_CONFIRM_SECONDS = 300.0
_MAX_FINDINGS = 1000
_KEEP_SECONDS = 30 * 86400.0
_RESOLVED = "~resolved"


class Channel(Protocol):
    """A way to tell.

    Attributes:
        name: of its folder in the outbox; the same after a restart, and holds no secret.
        resolves: whether it is told as well that a finding no longer holds, unless a policy says otherwise.
    """

    name: str
    resolves: bool

    def send(self, message: Message) -> str:
        """Deliver it, and return how that went, in words.

        Raises:
            SendError: it was not delivered.
        """


@runtime_checkable
class ConfirmedChannel(Protocol):
    """A channel that forgets what it is not told again."""

    def confirm(self, notices: list[Notice]) -> None:
        """These still hold; called every five minutes.

        Raises:
            SendError: it did not take that.
        """


@dataclass(frozen=True)
class _Waiting:
    """A notice that waits.

    Attributes:
        notice: what is to be told.
        since: when it was put here, seconds since the epoch.
        gather: seconds for which others are awaited, to be told with it.
        quiet_until: when it may be told, seconds since the epoch.
    """

    notice: Notice
    since: float
    gather: float
    quiet_until: float

    @property
    def kind(self) -> tuple[str, str]:
        """What those have in common that are more of the same."""
        return str(self.notice.finding["rule"]), str(self.notice.finding["severity"])

    def held(self, now: float) -> bool:
        """Whether it is held back by quiet hours."""
        return now < self.quiet_until

    def gathered(self, now: float) -> bool:
        """Whether others have been awaited for long enough; so they have where the clock was set back."""
        return not self.since <= now < self.since + self.gather


class Outbox:
    """Findings that wait to be told through one channel.

    A finding is told once, under its id, and once more when it no longer holds. What is found within some seconds is
    one message; after a message the next waits half a minute, then longer, up to a quarter of an hour while more keeps
    coming, and holds all that has come by then. An error of a rule that had not been told of meanwhile waits half a
    minute at most. A message that is not delivered is tried again with the same pauses, and keeps its id.

    ``waiting/ID.json`` is a finding to be told, ``sending.json`` the message under way, and ``sent/ID.json`` says that
    a finding was told: at any moment one of them knows it. ``ID~resolved.json`` says the same of its end.

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
        self._told: set[tuple[str, str]] = set()
        self._confirmed_at = -_CONFIRM_SECONDS
        self._pruned = False
        self._read: dict[str, _Waiting] = {}
        for part in ("waiting", "sent"):
            (self._folder / part).mkdir(parents=True, exist_ok=True)

    @property
    def name(self) -> str:
        """The channel's."""
        return self._channel.name

    @property
    def resolves(self) -> bool:
        """Whether the channel is to be told of what no longer holds."""
        return self._channel.resolves

    @property
    def waiting(self) -> int:
        """How many notices have not been told."""
        return len(self._names("waiting"))

    def put(self, notice: Notice, *, gather: float = GATHER_SECONDS, quiet_until: float = 0.0) -> bool:
        """Keep a notice until it is told; False where it is here, or was told before.

        Args:
            notice: what is to be told.
            gather: seconds for which others are awaited, to be told with it.
            quiet_until: when it may be told, seconds since the epoch.

        Raises:
            OSError: the outbox cannot be written.
        """
        name = notice.id + (_RESOLVED if notice.how else "")
        if self._file("sent", name).exists() or self._file("waiting", name).exists():
            return False
        content = {"notice": notice.to_file(), "since": time.time(), "gather": gather, "quiet_until": quiet_until}
        write_json(self._file("waiting", name), content)
        return True

    def holding(self, prefix: str = "") -> Iterator[Notice]:
        """Findings that were told, or wait to be, and of which it is not known that they no longer hold.

        Args:
            prefix: with what their ids begin.
        """
        waiting, sent = self._names("waiting"), self._names("sent")
        resolved = {name.removesuffix(_RESOLVED) for name in waiting | sent if name.endswith(_RESOLVED)}
        for part, names in (("sent", sent), ("waiting", waiting - sent)):
            for name in sorted(names - resolved):
                if name.startswith(prefix) and not name.endswith(_RESOLVED):
                    waits = read_json(self._file("waiting", name)).get("notice") if part == "waiting" else None
                    notice = Notice.from_file(waits or read_json(self._file("sent", name)))  # it may be told just now
                    if notice is not None:
                        yield notice

    def resolve(self, prefix: str, judge: Callable[[Notice], str], quiet: Callable[[Notice], float]) -> None:
        """Keep until it is told that findings no longer hold, of those that were told or wait to be.

        Args:
            prefix: with what the ids begin of those that are asked about.
            judge: why a finding no longer holds, "" where it does.
            quiet: until when that has to wait, seconds since the epoch.

        Raises:
            OSError: the outbox cannot be read or written.
        """
        for notice in self.holding(prefix):
            if how := judge(notice):
                self.put(notice.ended(how, time.time()), quiet_until=quiet(notice))

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
        self._confirm()
        content = read_json(self._folder / "sending.json") or self._collect(now)
        if not content or not (now or self._is_due(content)):
            return
        names, message = [str(name) for name in content["keys"]], str(content["id"])
        told = {name: waiting.notice for name in names if (waiting := self._waiting(name)) is not None}
        try:
            if told:
                log.info("%s: %s", self.name, self._channel.send(self._message(message, told)))
        except SendError as error:
            self._failed(content, error)
            if not error.final:
                return
        self._streak = self._streak + 1 if self._recently() else 0
        kinds = {self._read[name].kind for name in told}
        self._told = self._told | kinds if self._streak else kinds
        self._sent_at = time.monotonic()
        # In this order: until it is known that all was told, the message can be sent again as it was.
        for name, notice in told.items():
            write_json(self._file("sent", name), notice.told(message).to_file())
        (self._folder / "sending.json").unlink(missing_ok=True)
        for name in names:
            self._file("waiting", name).unlink(missing_ok=True)
            self._read.pop(name, None)

    def close(self) -> None:
        """Let another process deliver."""
        self._lease.release()

    # -- what waits -------------------------------------------------------------------------------------

    def _file(self, part: str, name: str) -> Path:
        return self._folder / part / f"{name}.json"

    def _names(self, part: str) -> set[str]:
        return {name.removesuffix(".json") for name in os.listdir(self._folder / part) if name.endswith(".json")}

    def _waiting(self, name: str) -> _Waiting | None:
        """What waits under that name; None where it is gone or cannot be read."""
        if name not in self._read:
            try:
                content: dict[str, Any] = read_json(self._file("waiting", name))
                notice = Notice.from_file(content.pop("notice", {}))
                if notice is None:
                    return None
                self._read[name] = _Waiting(notice, **content)
            except (TraceError, TypeError, AttributeError) as error:
                log.warning("%s: %s", self.name, error)
                return None
        return self._read[name]

    def _message(self, message: str, told: dict[str, Notice]) -> Message:
        resolved = []
        for notice in told.values():
            if notice.how:  # in which message it was told may have become known only after this began to wait
                before = Notice.from_file(read_json(self._file("sent", notice.id)))
                resolved.append(before.ended(notice.how, notice.resolved) if before is not None else notice)
        found = tuple(notice for notice in told.values() if not notice.how)
        return Message(message, found, tuple(resolved), tuple(self._told_and_open()) if resolved else ())

    def _told_and_open(self) -> Iterator[Notice]:
        return (notice for notice in self.holding() if notice.message)

    def _collect(self, now: bool) -> dict[str, Any]:
        """A message of all that waits, if it is time for one."""
        sent, clock = self._names("sent"), time.time()
        # The end of what has not been told waits for the message after: an incident would be closed as it is opened.
        names = [name for name in self._names("waiting") - sent if name.removesuffix(_RESOLVED) in (name, *sent)]
        found = {name: self._waiting(name) for name in sorted(names)}
        ready = {name: each for name, each in found.items() if each is not None and not each.held(clock)}
        if not ready or not (now or self._is_time(ready, clock)):
            return {}
        keys = list(ready)[:_MAX_FINDINGS]
        content: dict[str, Any] = {"id": uuid.uuid4().hex, "keys": keys, "tries": 0, "again_at": 0.0}
        write_json(self._folder / "sending.json", content)
        return content

    def _is_time(self, ready: dict[str, _Waiting], clock: float) -> bool:
        news = any(each.kind[1] == "error" and each.kind not in self._told for each in ready.values())
        pause = _PAUSES[0] if news else self._pause()
        rested = self._sent_at is None or time.monotonic() - self._sent_at >= pause
        return rested and any(each.gathered(clock) for each in ready.values())

    def _pause(self) -> float:
        return _PAUSES[min(self._streak, len(_PAUSES) - 1)]

    def _recently(self) -> bool:
        """Whether more has come soon after the message before."""
        return self._sent_at is not None and time.monotonic() - self._sent_at < 2 * self._pause()

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

    def _confirm(self) -> None:
        """Say that what was told still holds, to a channel that would forget it."""
        if not isinstance(self._channel, ConfirmedChannel) or time.monotonic() - self._confirmed_at < _CONFIRM_SECONDS:
            return
        self._confirmed_at = time.monotonic()
        try:
            if notices := list(self._told_and_open()):
                self._channel.confirm(notices)
        except SendError as error:
            log.warning("%s: what still holds was not confirmed: %s", self.name, error)

    def _prune(self) -> None:
        """Forget what was told a month ago, and what a process that died has left of what was told."""
        if self._pruned or (self._folder / "sending.json").exists():
            return
        self._pruned = True
        for name in self._names("waiting") & self._names("sent"):
            self._file("waiting", name).unlink(missing_ok=True)
        for entry in os.scandir(self._folder / "sent"):
            if time.time() - entry.stat().st_mtime > _KEEP_SECONDS:
                os.unlink(entry)
