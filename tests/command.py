"""The command ``stepwatch`` as a user types it, in this process: the start of another takes most of a quick test."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess

from stepwatch.cli.main import main


def stepwatch(*args: object) -> subprocess.CompletedProcess[str]:
    """Run it to its end; what it printed, and its exit status."""
    out, errors = io.StringIO(), io.StringIO()
    log = logging.getLogger("stepwatch")
    level, status = log.level, 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            main([str(each) for each in args])
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        log.setLevel(level)
    return subprocess.CompletedProcess(list(args), status, out.getvalue(), errors.getvalue())
