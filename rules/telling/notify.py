"""The action that tells of a finding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.telling.notice import Notice, prefix
from stepwatch.rules.telling.outbox import GATHER_SECONDS, Outbox
from stepwatch.rules.telling.quiet import QuietHours


class NotifyAction:
    """Puts findings into outboxes, from which they are delivered.

    Args:
        outboxes: one for each channel.
        at_least: severity from which it tells.
        name: recorded in the trace.
        gather: seconds for which other findings are awaited, to be told in the same message.
        quiet: hours in which what can wait is not told.
        resolved: whether it is told as well that a finding no longer holds; by default where the channel wants that.

    Attributes:
        quiet: hours in which what can wait is not told.
    """

    def __init__(
        self,
        outboxes: Sequence[Outbox],
        at_least: Severity = Severity.WARNING,
        name: str = "notify",
        *,
        gather: float = GATHER_SECONDS,
        quiet: QuietHours | None = None,
        resolved: bool | None = None,
    ) -> None:
        self._outboxes = list(outboxes)
        self.at_least = at_least
        self.name = name
        self._gather = gather
        self.quiet = quiet or QuietHours(())
        self._resolved = resolved

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Put it there.

        Raises:
            OSError: an outbox cannot be written.
        """
        notice = Notice.of(run_dir, finding, time.time())
        until = self.quiet.until(notice.time, finding.severity)
        for outbox in self._outboxes:
            outbox.put(notice, gather=self._gather, quiet_until=until)
        return f"to be told through {', '.join(outbox.name for outbox in self._outboxes)}"

    def resolve(self, run_dir: Path, judge: Callable[[Notice], str]) -> None:
        """Tell of findings of a run that no longer hold, of those that were told or wait to be.

        Args:
            run_dir: the run.
            judge: why a finding no longer holds, "" where it does.

        Raises:
            OSError: an outbox cannot be written.
        """
        ids = prefix(run_dir)
        for outbox in self._outboxes:
            if outbox.resolves if self._resolved is None else self._resolved:
                outbox.resolve(ids, judge, self._until)

    def _until(self, notice: Notice) -> float:
        return self.quiet.until(time.time(), Severity(notice.finding["severity"]))
