"""What is done about a finding: stop the job, tell somebody. Once per finding, and recorded in the trace."""

from __future__ import annotations

import http.client
import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from stepwatch.probe.store.control import request_stop
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.findings import FindingLog
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Finding, Severity

log = logging.getLogger("stepwatch")

_RANKING = {Severity.INFO: 0, Severity.WARNING: 1, Severity.ERROR: 2}
_WORTH_ANOTHER_TRY = (408, 425, 429)


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
        elif Trace(run_dir).live():
            request_stop(run_dir, reason, by="watch")
        else:
            return "nothing to stop: the job had ended"
        return "stop requested"


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
    """Posts the finding as JSON.

    The body is ``{"run": directory, "job_name": ..., "run_id": ..., "finding": {...}}``, where ``finding`` is the
    object that ``analyze --json`` prints: rule, severity, first_step, last_step, tensors, value, threshold,
    message, suggestion, evidence, rank.

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
        try:
            parts = urllib.parse.urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("the webhook's URL is not of the form http[s]://HOST[:PORT]/PATH")
        self._url = url
        self.at_least = at_least
        self._attempts = attempts
        self._timeout = timeout

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Post it.

        Raises:
            OSError: no try succeeded; the message does not hold the URL.
        """
        info = Trace(run_dir).info
        payload: dict[str, Any] = {
            "run": str(run_dir),
            "job_name": info.job_name,
            "run_id": info.run_id,
            "finding": finding.to_json(),
        }
        body = json.dumps(payload, allow_nan=False).encode()
        for attempt in range(1, self._attempts + 1):
            try:
                return f"posted, answered {self._post(body)}"
            except urllib.error.HTTPError as error:
                failure, final = f"answered {error.code}", error.code < 500 and error.code not in _WORTH_ANOTHER_TRY
            except (OSError, ValueError, http.client.HTTPException) as error:
                failure, final = _spell_failure(error), False
            if final or attempt == self._attempts:
                break
            time.sleep(2 ** (attempt - 1))
        raise OSError(f"not posted in {attempt} tr{'y' if attempt == 1 else 'ies'}: {failure}")

    def _post(self, body: bytes) -> int:
        headers = {"Content-Type": "application/json", "User-Agent": "stepwatch"}
        request = urllib.request.Request(self._url, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=self._timeout) as answer:
            return int(answer.status)


def _spell_failure(error: Exception) -> str:
    """What went wrong on the way, without texts of the libraries in which the URL may stand."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    system = reason.strerror if isinstance(reason, OSError) else None
    return system or type(reason).__name__


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
    """

    def __init__(self, run_dir: Path, actions: Sequence[Action], judged_by: str) -> None:
        self._run_dir = run_dir
        self._log = FindingLog(run_dir, judged_by)
        self._workers = [_Worker(action, run_dir, self._log) for action in actions]
        self._handed: set[tuple[str, int, str]] = set()

    def dispatch(self, findings: Sequence[Finding]) -> None:
        """Record what is new, and have it acted upon. No failure hides a finding or keeps others from acting."""
        if not findings:
            return
        history = _History(self._run_dir)
        new = [finding for finding in findings if finding.id not in history.found]
        try:
            if new:
                self._log.append([_row(finding) for finding in new])
        except OSError as error:
            log.warning("%s: findings cannot be recorded: %s", self._run_dir, error)
        for finding in findings:
            since = history.began(finding)
            for worker in self._workers:
                key = (finding.id, since, worker.action.name)
                if key not in self._handed and not history.done(finding, worker.action.name, since):
                    self._handed.add(key)
                    worker.submit(finding)

    def close(self, timeout: float = 20.0) -> None:
        """Wait for actions under way, at most so many seconds in all."""
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            worker.finish(max(0.0, deadline - time.monotonic()))


class _History:
    """What the trace says was found and done."""

    def __init__(self, run_dir: Path) -> None:
        self._trace: Trace | None
        try:
            self._trace = Trace(run_dir)
            rows = {row["finding_id"]: row["actions"] for row in self._trace.findings()}
        except (TraceError, OSError):
            # Another rank's first finding may come before rank 0 has written run.json.
            self._trace, rows = None, {}
        self.found = frozenset(rows)
        self._actions: dict[str, list[dict[str, Any]]] = rows

    def began(self, finding: Finding) -> int:
        """When the attempt of the job began that recorded the step at which this was decided."""
        entries = self._trace.attempts(finding.rank).entries if self._trace is not None else []
        for entry in reversed(entries):
            start = entry.get("start_step")
            if start is not None and start <= finding.last_step:
                return int(entry.get("started_ns", 0))
        return 0

    def done(self, finding: Finding, action: str, since: int) -> bool:
        """Whether the action was carried out for this finding since then."""
        return any(
            row["action"] == action and row["outcome"] == "done" and row["time_ns"] >= since
            for row in self._actions.get(finding.id, ())
        )


class _Worker:
    """Carries out one action, finding after finding, in a thread that begins with the first."""

    def __init__(self, action: Action, run_dir: Path, finding_log: FindingLog) -> None:
        self.action = action
        self._run_dir = run_dir
        self._log = finding_log
        self._queue: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, finding: Finding) -> None:
        """Do it, if the finding is severe enough."""
        if _RANKING[finding.severity] < _RANKING[self.action.at_least]:
            return
        self._queue.put(finding)
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
        while (finding := self._queue.get()) is not None:
            try:
                outcome, detail = "done", self.action.apply(finding, self._run_dir)
            except Exception as error:
                outcome, detail = "failed", f"{type(error).__name__}: {error}"
                log.warning("action %s on %s failed: %s", self.action.name, finding.rule, detail)
            try:
                self._log.append_action(finding.id, self.action.name, outcome, detail)
            except OSError as error:
                log.warning("%s: action %s cannot be recorded: %s", self._run_dir, self.action.name, error)


def _row(finding: Finding) -> dict[str, Any]:
    content = finding.to_json()
    return {
        **content,
        "finding_id": finding.id,
        "value": finding.value,
        "threshold": finding.threshold,
        "evidence": json.dumps(content["evidence"]),
    }
