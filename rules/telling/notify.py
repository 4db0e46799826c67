"""The action that tells of a finding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.telling.message import item
from stepwatch.rules.telling.outbox import Outbox


class NotifyAction:
    """Puts findings into outboxes, from which they are delivered.

    Args:
        outboxes: one for each channel.
        at_least: severity from which it tells.
        name: recorded in the trace.
    """

    def __init__(self, outboxes: Sequence[Outbox], at_least: Severity = Severity.WARNING, name: str = "notify") -> None:
        self._outboxes = list(outboxes)
        self.at_least = at_least
        self.name = name

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Put it there.

        Raises:
            OSError: an outbox cannot be written.
        """
        about = item(run_dir, finding)
        key = f"{about['run_id'] or run_dir.name}-{_attempt(finding, run_dir)}-{finding.id}"
        for outbox in self._outboxes:
            outbox.put(key, about)
        return f"to be told through {', '.join(outbox.name for outbox in self._outboxes)}"


def _attempt(finding: Finding, run_dir: Path) -> int:
    try:
        return Trace(run_dir).attempts(finding.rank).deciding(finding.last_step)
    except TraceError:
        return 0
