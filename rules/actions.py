"""What is done about a finding: stop the job, tell somebody. Once per finding, and recorded in the trace."""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from stepwatch.probe.store.control import request_stop
from stepwatch.probe.store.findings import FindingLog
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Finding, Severity

log = logging.getLogger("stepwatch")

_RANKING = {Severity.INFO: 0, Severity.WARNING: 1, Severity.ERROR: 2}


class Action(Protocol):
    """Something to do about a finding.

    Attributes:
        name: recorded in the trace.
        at_least: findings below this severity are not acted upon.
    """

    name: str
    at_least: Severity

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Do it and return what was done, in words. What it raises is recorded as its failure."""


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
        else:
            request_stop(run_dir, reason, by="watch")
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
    """Posts the finding as JSON: {"run", "job_name", "run_id", "finding": {...}}.

    Args:
        url: http or https; it may hold a secret and is therefore neither logged nor recorded.
        at_least: severity from which it posts.
        attempts: tries before it gives up, a second apart at first, then twice as long each time.
        timeout: seconds that one try may take.
    """

    name = "webhook"

    def __init__(
        self, url: str, at_least: Severity = Severity.WARNING, attempts: int = 3, timeout: float = 5.0
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError("the webhook's URL does not begin with http:// or https://")
        self._url = url
        self.at_least = at_least
        self._attempts = attempts
        self._timeout = timeout

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Post it.

        Raises:
            OSError: no try succeeded.
        """
        info = Trace(run_dir).info
        payload: dict[str, Any] = {
            "run": str(run_dir),
            "job_name": info.job_name,
            "run_id": info.run_id,
            "finding": finding.to_json(),
        }
        request = urllib.request.Request(
            self._url,
            data=json.dumps(payload).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "stepwatch"},
        )
        for attempt in range(self._attempts):
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                    return f"posted, answered {answer.status}"
            except OSError as error:
                if attempt == self._attempts - 1:
                    code = error.code if isinstance(error, urllib.error.HTTPError) else type(error).__name__
                    raise OSError(f"not posted after {self._attempts} tries: {code}") from None
                time.sleep(2**attempt)
        raise AssertionError("unreachable")


class Dispatcher:
    """Records findings and acts on them, each action once per finding, also across restarts.

    Args:
        run_dir: the run.
        actions: what to do.
        judged_by: "hook" or "watch", recorded with the findings.
    """

    def __init__(self, run_dir: Path, actions: Sequence[Action], judged_by: str) -> None:
        self._run_dir = run_dir
        self._actions = list(actions)
        self._log = FindingLog(run_dir, judged_by)
        self._done: set[tuple[str, str]] = set()
        self._found: set[str] = set()
        for row in Trace(run_dir).findings():
            self._found.add(row["finding_id"])
            self._done |= {(row["finding_id"], done["action"]) for done in row["actions"]}

    def dispatch(self, findings: Sequence[Finding]) -> None:
        """Record what is new, then act. A failing action is recorded, and hides nothing."""
        new = [finding for finding in findings if finding.id not in self._found]
        if new:
            self._log.append([_row(finding) for finding in new])
            self._found |= {finding.id for finding in new}
        for finding in findings:
            for action in self._actions:
                key = (finding.id, action.name)
                if _RANKING[finding.severity] < _RANKING[action.at_least] or key in self._done:
                    continue
                self._done.add(key)
                try:
                    outcome, detail = "done", action.apply(finding, self._run_dir)
                except Exception as error:
                    outcome, detail = "failed", f"{type(error).__name__}: {error}"
                    log.warning("action %s on %s failed: %s", action.name, finding.rule, detail)
                self._log.append_action(finding.id, action.name, outcome, detail)


def _row(finding: Finding) -> dict[str, Any]:
    content = finding.to_json()
    return {
        **content,
        "finding_id": finding.id,
        "value": finding.value,
        "threshold": finding.threshold,
        "evidence": json.dumps(content["evidence"]),
    }
