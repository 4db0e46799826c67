"""A finding on its way to those who are told of it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Finding


@dataclass(frozen=True)
class Notice:
    """A finding of a run, or that it no longer holds.

    Attributes:
        id: the same wherever and however often the same is found in the same attempt of a job.
        run: directory of the run.
        job_name, run_id: its, as far as they are known.
        attempt: attempt of the job that recorded what was found.
        time: when it was found, seconds since the epoch.
        finding: the object that ``analyze --json`` prints.
        message: id of the message in which it was told, "" before.
        how: why it no longer holds, "" while it does.
        resolved: when it ceased to, seconds since the epoch.
    """

    id: str
    run: str
    job_name: str
    run_id: str
    attempt: int
    time: float
    finding: dict[str, Any]
    message: str = ""
    how: str = ""
    resolved: float = 0.0

    @classmethod
    def of(cls, run_dir: Path, finding: Finding, now: float) -> Notice:
        """That of a finding in a run."""
        job_name, run_id, attempt = run_dir.name, "", 0
        try:
            trace = Trace(run_dir)
            job_name, run_id = trace.info.job_name, trace.info.run_id
            attempt = trace.attempts(finding.rank).deciding(finding.last_step)
        except TraceError:
            pass  # another rank's first finding may come before rank 0 has written run.json
        key = f"{prefix(run_dir)}-{attempt}-{finding.id}"
        return cls(key, str(run_dir), job_name, run_id, attempt, now, finding.to_json())

    @classmethod
    def from_file(cls, content: dict[str, Any]) -> Notice | None:
        """What :meth:`to_file` has written; None of anything else."""
        try:
            return cls(**content)
        except TypeError:
            return None

    def to_file(self) -> dict[str, Any]:
        """As it is kept on disk."""
        return asdict(self)

    def told(self, message: str) -> Notice:
        """The same once it was told, without what only the first message needs."""
        return replace(self, message=message, finding={**self.finding, "evidence": {}})

    def ended(self, how: str, now: float) -> Notice:
        """That it no longer holds."""
        return replace(self, how=how, resolved=max(now, self.time))

    def to_json(self) -> dict[str, Any]:
        """As webhooks get it."""
        content: dict[str, Any] = {
            "id": self.id,
            "run": self.run,
            "job_name": self.job_name,
            "run_id": self.run_id,
            "time": iso(self.time),
            "finding": self.finding,
        }
        return {**content, "resolved_time": iso(self.resolved), "how": self.how} if self.how else content


def prefix(run_dir: Path) -> str:
    """With what the ids of a run's notices begin; a file name, whatever the run calls itself."""
    try:
        name = Trace(run_dir).info.run_id
    except TraceError:
        name = ""
    return hashlib.sha1((name or str(run_dir.absolute())).encode()).hexdigest()[:12]


def iso(seconds: float) -> str:
    """A moment in UTC as RFC 3339 has it, to the millisecond."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
