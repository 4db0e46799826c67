"""What is done about a finding: stop the job, tell somebody. Once per finding, and recorded in the trace."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from stepwatch.probe.store.control import request_stop
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.findings import FindingLog
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.checkpoints import with_healthy_checkpoint
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.notice import Notice
from stepwatch.rules.telling.posting import SendError
from stepwatch.rules.telling.webhook import Webhook

log = logging.getLogger("stepwatch")

_RECORD_AGAIN_SECONDS = 5.0


class Action(Protocol):
    """Something to do about a finding.

    Attributes:
        name: recorded in the trace; what was done once under it is not done again.
        at_least: findings below this severity are not acted upon.
    """

    name: str
    at_least: Severity

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Do it and return what was done, in words. What it raises is recorded as its failure.

        Called in a thread of this action's own, so it may take its time.
        """


class StopAction:
    """Stops the job at its next step, after its checkpoint.

    Args:
        stop: gets the reason; without it the request goes through RUN/control.
        at_least: severity from which it stops.
    """

    name = "stop"

    def __init__(self, stop: Callable[[str], None] | None = None, at_least: Severity = Severity.ERROR) -> None:
        self._stop = stop
        self.at_least = at_least

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Ask for the stop."""
        reason = f"{finding.rule}: {finding.message}"
        if self._stop is not None:
            self._stop(reason)
            return "stop requested"
        trace = Trace(run_dir)
        if not trace.live():
            return "nothing to stop: the job had ended"
        if is_of_an_earlier_attempt(trace, finding):
            return "nothing to stop: the job was started again since"
        request_stop(run_dir, reason, by="watch")
        return "stop requested"


def is_of_an_earlier_attempt(trace: Trace, finding: Finding) -> bool:
    """Whether the job was started again since it recorded the step at which this was decided."""
    attempts = trace.attempts(finding.rank)
    return attempts.deciding(finding.last_step) < len(attempts.entries) - 1


class ForRules:
    """An action on what some rules find, and no others.

    Args:
        action: the action.
        rules: their names.
    """

    def __init__(self, action: Action, rules: Iterable[str]) -> None:
        self._action = action
        self.rules = frozenset(rules)
        self.name = action.name
        self.at_least = Severity.INFO

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Do it."""
        return self._action.apply(finding, run_dir)


class LogAction:
    """Writes the finding to the log ``stepwatch``."""

    name = "log"

    def __init__(self, at_least: Severity = Severity.INFO) -> None:
        self.at_least = at_least

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Log it at the level of its severity."""
        level = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING}
        level_number = level.get(finding.severity, logging.ERROR)
        log.log(level_number, "%s: %s: %s", run_dir, finding.rule, finding.message)
        return "logged"


class WebhookAction:
    """Posts the finding as JSON, see :class:`Webhook`; signed where STEPWATCH_WEBHOOK_SECRET holds a secret.

    Args:
        url: http or https; it may hold a secret and is therefore neither logged nor recorded.
        at_least: severity from which it posts.
        attempts: tries before it gives up, a second apart at first, then twice as long each time. An answer
            that says that the request is wrong (status 4xx) is final.
        timeout: seconds that one try may take.

    Raises:
        ValueError: the URL is not one.
    """

    name = "webhook"

    def __init__(
        self, url: str, at_least: Severity = Severity.WARNING, attempts: int = 3, timeout: float = 5.0
    ) -> None:
        self._webhook = Webhook(url, os.environ.get("STEPWATCH_WEBHOOK_SECRET"), timeout)
        self.at_least = at_least
        self._attempts = attempts

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Post it.

        Raises:
            OSError: no try succeeded; the message does not hold the URL.
        """
        notice = Notice.of(run_dir, finding, time.time())
        message = Message(notice.id, (notice,))
        attempt = 0
        while True:
            attempt += 1
            try:
                return f"posted, {self._webhook.send(message)}"
            except SendError as error:
                if error.final or attempt == self._attempts:
                    tries = f"{attempt} tr{'y' if attempt == 1 else 'ies'}"
                    raise OSError(f"not posted in {tries}: {error}") from None
            time.sleep(2 ** (attempt - 1))


class Dispatcher:
    """Records findings and acts on them, each action once per finding, also across restarts.

    What was done about a finding is read from the trace, so another judge of the same run, or this one
    started again, does not repeat it; what failed is tried again then. A job that was started again and
    makes the same mistake at the same step has made it anew. Each action has a thread of its own: one that
    waits for a network holds up neither the judging nor the others.

    Args:
        run_dir: the run.
        actions: what to do.
        judged_by: "hook" or "watch", recorded with the findings.
        records: where to record, for a run that cannot be written; the run itself by default.
    """

    def __init__(self, run_dir: Path, actions: Sequence[Action], judged_by: str, records: Path | None = None) -> None:
        self._run_dir = run_dir
        self._records = records or run_dir
        self._log = FindingLog(self._records, judged_by)
        self._workers = [_Worker(action, run_dir, self._log) for action in actions]
        self._handed: set[tuple[str, int, str]] = set()
        self._unwritten: list[dict[str, Any]] = []

    @property
    def idle(self) -> bool:
        """Whether everything handed over is done and recorded."""
        return not self._unwritten and all(worker.idle for worker in self._workers)

    def dispatch(self, findings: Sequence[Finding]) -> list[Finding]:
        """Record what is new, and have it acted upon. No failure hides a finding or keeps others from acting.

        What could not be recorded is tried again by the next call, also one with no findings.

        Returns:
            Those that nobody had recorded before.
        """
        if not findings:
            self._write()
            return []
        history = _History(self._run_dir, self._records)
        findings = [history.with_checkpoint(finding) for finding in findings]
        new = [finding for finding in findings if finding.id not in history.found]
        self._unwritten += [_row(finding, history.attempt(finding)) for finding in new]
        self._write()
        for finding in findings:
            attempt = history.attempt(finding)
            for worker in self._workers:
                key = (finding.id, attempt, worker.action.name)
                if (
                    worker.wants(finding)
                    and key not in self._handed
                    and not history.done(finding, worker.action.name, attempt)
                ):
                    self._handed.add(key)
                    worker.submit(finding, attempt)
        return new

    def _write(self) -> None:
        try:
            if self._unwritten:
                self._log.append(self._unwritten)
                self._unwritten = []
        except OSError as error:
            log.warning("%s: findings cannot be recorded: %s", self._run_dir, error)

    def close(self, timeout: float = 20.0) -> None:
        """Wait for actions under way, at most so many seconds in all."""
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            worker.finish(max(0.0, deadline - time.monotonic()))


class _History:
    """What the trace says was found and done."""

    def __init__(self, run_dir: Path, records: Path) -> None:
        self._trace: Trace | None
        try:
            self._trace = Trace(run_dir)
            rows = {row["finding_id"]: row["actions"] for row in self._trace.findings(records)}
        except (TraceError, OSError):
            # Another rank's first finding may come before rank 0 has written run.json.
            self._trace, rows = None, {}
        self.found = frozenset(rows)
        self._actions: dict[str, list[dict[str, Any]]] = rows

    def with_checkpoint(self, finding: Finding) -> Finding:
        """The finding, with the checkpoint named to which one may go back."""
        return with_healthy_checkpoint(self._trace, finding) if self._trace is not None else finding

    def attempt(self, finding: Finding) -> int:
        """The attempt of the job that recorded the step at which this was decided."""
        return self._trace.attempts(finding.rank).deciding(finding.last_step) if self._trace is not None else 0

    def done(self, finding: Finding, action: str, attempt: int) -> bool:
        """Whether the action was carried out for this finding of that attempt."""
        return any(
            row["action"] == action and row["outcome"] == "done" and (row["attempt"] or 0) == attempt
            for row in self._actions.get(finding.id, ())
        )


class _Worker:
    """Carries out one action, finding after finding, in a thread that begins with the first."""

    def __init__(self, action: Action, run_dir: Path, finding_log: FindingLog) -> None:
        self.action = action
        self._run_dir = run_dir
        self._log = finding_log
        self._queue: queue.Queue[tuple[Finding, int] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._unwritten: list[tuple[str, str, str, str, int]] = []

    @property
    def idle(self) -> bool:
        """Whether all is done and recorded."""
        return not self._queue.unfinished_tasks and not self._unwritten

    def wants(self, finding: Finding) -> bool:
        """Whether the finding is severe enough, and of a rule that is meant."""
        meant = not isinstance(self.action, ForRules) or finding.rule in self.action.rules
        return meant and finding.severity.rank >= self.action.at_least.rank

    def submit(self, finding: Finding, attempt: int) -> None:
        """Do it."""
        self._queue.put((finding, attempt))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"stepwatch-{self.action.name}", daemon=True)
            self._thread.start()

    def finish(self, timeout: float) -> None:
        """Wait until all is done."""
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            log.warning("%s: action %s was not finished in time", self._run_dir, self.action.name)
        self._thread = None

    def _run(self) -> None:
        while True:
            try:
                task = self._queue.get(timeout=_RECORD_AGAIN_SECONDS if self._unwritten else None)
            except queue.Empty:
                self._write()
                continue
            if task is not None:
                finding, attempt = task
                outcome, detail = self._apply(finding)
                self._unwritten.append((finding.id, self.action.name, outcome, detail, attempt))
            self._write()
            self._queue.task_done()
            if task is None:
                return

    def _apply(self, finding: Finding) -> tuple[str, str]:
        try:
            return "done", self.action.apply(finding, self._run_dir)
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
            log.warning("action %s on %s failed: %s", self.action.name, finding.rule, detail)
            return "failed", detail

    def _write(self) -> None:
        try:
            while self._unwritten:
                self._log.append_action(*self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            log.warning("%s: action %s cannot be recorded: %s", self._run_dir, self.action.name, error)


def _row(finding: Finding, attempt: int) -> dict[str, Any]:
    content = finding.to_json()
    return {
        **content,
        "finding_id": finding.id,
        "attempt": attempt,
        "value": finding.value,
        "threshold": finding.threshold,
        "evidence": json.dumps(content["evidence"]),
    }
