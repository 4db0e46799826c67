"""The logger that smdebug's scripts ask for: lines on standard output, each text a limited number of times."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections import Counter

from stepwatch.rules.smdebug.core.constants import LOG_DUPLICATION_THRESHOLD

_LEVELS = ("debug", "info", "warning", "error", "critical", "off")
_configured: set[str] = set()


class MaxLevelFilter(logging.Filter):
    """Lets through what is below a level."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is let through."""
        return record.levelno < self.level


class DuplicateLogFilter(logging.Filter):
    """Lets a text through as often as ``LOG_DUPLICATION_THRESHOLD`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.msgs: Counter[str] = Counter()
        self.repeat_threshold = LOG_DUPLICATION_THRESHOLD

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is let through."""
        self.msgs[record.msg] += 1
        return self.msgs[record.msg] <= self.repeat_threshold


def get_logger(name: str = "smdebug") -> logging.Logger:
    """A logger as the environment says: ``SMDEBUG_LOG_LEVEL``, ``SMDEBUG_LOG_PATH`` for a file besides,
    ``SMDEBUG_LOG_ALL_TO_STDOUT=false`` for errors on standard error, ``SMDEBUG_LOG_CONTEXT`` before each line.
    """
    logger = logging.getLogger(name)
    if name in _configured:
        return logger
    _configured.add(name)
    level = os.environ.get("SMDEBUG_LOG_LEVEL", "info").lower()
    level = level if level in _LEVELS else "info"
    logger.disabled = level == "off"
    if level != "off":
        logger.setLevel(level.upper())
    context = os.environ.get("SMDEBUG_LOG_CONTEXT", f"{socket.gethostname()}:{os.getpid()}")
    line = f"[%(asctime)s.%(msecs)03d {context} %(levelname)s %(filename)s:%(lineno)d] %(message)s"
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if os.environ.get("SMDEBUG_LOG_ALL_TO_STDOUT", "true").lower() == "false":
        handlers[0].addFilter(MaxLevelFilter(logging.ERROR))
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[1].setLevel(logging.ERROR)
    if (path := os.environ.get("SMDEBUG_LOG_PATH")) is not None:
        handlers.append(logging.FileHandler(path))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(line, "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    logger.addFilter(DuplicateLogFilter())
    logger.propagate = False
    return logger
