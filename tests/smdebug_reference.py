"""Runs jobs and queries under smdebug itself, and under what stands in for it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
REFERENCE = Path(os.environ.get("STEPWATCH_SMDEBUG_PYTHON") or ROOT / ".smdebug-venv" / "bin" / "python")
KINDS = ("raw", "reductions", "both", "script")

_NORMS = ("l1", "l2", "abs l1", "abs l2")


def job(python: Path, *arguments: object) -> dict:
    """What a Python prints of directories, by their names; see smdebug_job.py for the arguments."""
    command = [str(python), str(Path(__file__).with_name("smdebug_job.py")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    read = json.loads(done.stdout.splitlines()[-1])
    return {Path(directory).name: content for directory, content in read.items()}


def differences(
    theirs: object, ours: object, path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], object, object]]:
    """Where two answers differ, but for norms that smdebug fails to compute: of what is no vector or matrix."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = {**theirs, **ours}
        return [d for key in keys for d in differences(theirs.get(key), ours.get(key), (*path, key))]
    if theirs == ours or (path[-1] in _NORMS and theirs == "ValueError"):
        return []
    return [(path, theirs, ours)]
