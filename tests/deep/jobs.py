"""Training scripts in processes of their own, that train until a file appears."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running(script: str, folder: Path, ready: Callable[[Path], object]) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """The run and the process of a script that gets RUN and STOP: it ends when the file STOP is there."""
    (folder / "train.py").write_text(script)
    run, stop = folder / "run", folder / "stop"
    process = subprocess.Popen([sys.executable, str(folder / "train.py"), str(run), str(stop)], text=True)
    try:
        deadline = time.monotonic() + 60
        while not ready(run):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield run, process
    finally:
        stop.touch()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
