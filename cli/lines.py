"""What a watcher does as lines of JSON, for collectors of logs."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, TextIO

from stepwatch.rules.finding import Severity, Status
from stepwatch.rules.sidecar.run import Begun, Ended, Event, Found, Said
from stepwatch.rules.telling.notice import iso

_LEVELS = {Severity.INFO: "info", Severity.WARNING: "warning", Severity.ERROR: "error"}


class JsonLines(logging.Handler):
    """Prints an object per line: each event of a run, and what is logged under ``stepwatch``.

    Keys of all: ``time`` (RFC 3339), ``level`` (info, warning, error), ``event`` (begun, found, ended, said, log) and
    ``message``; of those about a run ``run``; of ``begun`` ``job``, ``rules``; of ``found`` ``finding``; of ``ended``
    ``status`` and ``findings``.

    Args:
        file: where to print.
    """

    def __init__(self, file: TextIO) -> None:
        super().__init__(logging.INFO)
        self._file = file
        logger = logging.getLogger("stepwatch")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        logger.propagate = False

    def tell(self, event: Event) -> bool:
        """Print it; whether it is a finding."""
        run = str(event.run)
        if isinstance(event, Found):
            finding = event.finding
            self._print(_LEVELS[finding.severity], "found", finding.message, run=run, finding=finding.to_json())
        elif isinstance(event, Ended):
            text = f"{event.status}, {event.findings} issues found"
            self._print("info", "ended", text, run=run, status=event.status, findings=event.findings)
        elif isinstance(event, Begun):
            rules = [spec.name for spec in event.specs]
            self._print("info", "begun", f"judged by {len(rules)} rules", run=run, job=event.job, rules=rules)
        elif isinstance(event, Said):
            self._print("warning", "said", event.message, run=run)
        return isinstance(event, Found)

    def say(self, text: str) -> None:
        """Something about the watcher itself."""
        self._print("info", "log", text)

    def stop(self, status: Status) -> None:
        """Judging ends."""
        self._print("info", "log", f"the watcher is {status.value.lower()}")

    def emit(self, record: logging.LogRecord) -> None:
        """Print what is logged."""
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        self._print(level, "log", record.getMessage())

    def _print(self, level: str, event: str, message: str, **more: Any) -> None:
        line = {"time": iso(time.time()), "level": level, "event": event, "message": message, **more}
        print(json.dumps(line, allow_nan=False), file=self._file, flush=True)
