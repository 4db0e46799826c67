"""Tells that findings of a run no longer hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.actions import Action
from stepwatch.rules.finding import Finding
from stepwatch.rules.sidecar.hangs import RULE as HANG
from stepwatch.rules.stacks import read_beat
from stepwatch.rules.telling.notice import Notice
from stepwatch.rules.telling.notify import NotifyAction

_ENDINGS = {"finished": "the job has finished", "stopped": "the job was stopped", "killed": "the job was killed"}


class Resolutions:
    """What was told of a run, and no longer holds: a rank moves again, the job was started again, or is over.

    Args:
        trace: the run.
        actions: those that tell, among others.
        records: where its findings are recorded.
    """

    def __init__(self, trace: Trace, actions: Sequence[Action], records: Path) -> None:
        self._trace = trace
        self._tellers = [action for action in actions if isinstance(action, NotifyAction)]
        self._records = records
        self._hung: set[tuple[int, int]] = set()
        self._begun = False
        self._concluded = False

    def see(self, findings: Iterable[Finding]) -> None:
        """These are new."""
        self._hung |= {(finding.rank, finding.last_step) for finding in findings if finding.rule == HANG}

    def begin(self) -> None:
        """The job, or watching it, has begun, perhaps not for the first time."""
        self._begun, self._concluded = bool(self._tellers), False
        if self._tellers:
            rows = self._trace.findings(self._records)
            self._hung |= {(int(row["rank"]), int(row["last_step"])) for row in rows if row["rule"] == HANG}

    def look(self) -> None:
        """Tell what has become known of a run that goes on.

        Raises:
            OSError: an outbox cannot be written.
        """
        moving = {(rank, step) for rank, step in self._hung if self._step(rank) > step}
        if self._begun or moving:
            self._tell(self._why)
        self._begun = False
        self._hung -= moving

    def conclude(self) -> None:
        """The run is over, and everything that was found in it has been handed to those who tell it.

        Raises:
            OSError: an outbox cannot be written.
        """
        if self._tellers and not self._concluded:
            status = self._trace.status()
            self._tell(lambda notice: self._why(notice) or _ENDINGS.get(status, f"the job has ended: {status}"))
        self._concluded = True

    def _tell(self, judge: Callable[[Notice], str]) -> None:
        for teller in self._tellers:
            teller.resolve(self._trace.path, judge)

    def _why(self, notice: Notice) -> str:
        rank, step = int(notice.finding["rank"]), int(notice.finding["last_step"])
        again = self._trace.attempts(rank).cut(notice.attempt)
        if again is not None and step >= again:
            return f"the job was started again from step {again}"
        if notice.finding["rule"] == HANG and (now := self._step(rank)) > step:
            return f"rank {rank} moves again: it has come to step {now}"
        return ""

    def _step(self, rank: int) -> int:
        return int(read_beat(self._trace.path, rank).get("step", 0))
