"""Which code a job runs: the commit of its script's repository, and the script itself."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

_SECONDS = 2.0


def code_version() -> dict[str, str]:
    """What is known of ``commit`` (with ``-dirty`` where tracked files were changed) and ``script`` (SHA-256).

    Empty in an interactive session. A repository that git cannot describe within two seconds has no commit.
    """
    name = getattr(sys.modules.get("__main__"), "__file__", None)
    if not name:
        return {}
    script = Path(name).absolute()
    found = {}
    try:
        found["script"] = hashlib.sha256(script.read_bytes()).hexdigest()
    except OSError:
        return {}
    describe = ["git", "-C", str(script.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=_SECONDS, check=True)
        found["commit"] = done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return found
