"""Commands in processes of their own, forked from one that has imported torch: each is spared its import.

They are processes like any other: with their own environment, directory, output and exit status, with hooks that run
at their end, and with nothing shared but what was imported.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_PARENT = """
import json, os, runpy, sys, threading
import torch._dynamo  # which an optimizer imports at its first step
import stepwatch.cli.main, stepwatch.probe.hook, stepwatch.rules.replay
assert threading.active_count() == 1
requests = os.fdopen(os.dup(0), "r")
answers = os.fdopen(os.dup(1), "w")
for line in iter(requests.readline, ""):
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
else:
    sys.exit()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for number, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(request[name], os.O_WRONLY), number)
os.chdir(request["cwd"])
os.environ.clear()
os.environ.update(request["env"])
sys.argv = ["stepwatch", *request["arguments"]]
sys.path[0] = ""
runpy.run_module("stepwatch.cli", run_name="__main__", alter_sys=True)
"""


class WarmCommand:
    """Runs ``stepwatch`` commands one after another; a context manager."""

    def __enter__(self) -> WarmCommand:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._parent = subprocess.Popen([sys.executable, "-c", _PARENT], start_new_session=True, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._parent.pid, signal.SIGKILL)  # with a command that hangs
        self._parent.communicate()

    def __call__(
        self, *arguments: str | Path, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        assert self._parent.stdin is not None and self._parent.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            out.touch(), err.touch()
            request = {"arguments": list(map(str, arguments)), "cwd": str(cwd or Path.cwd())}
            request |= {"env": {**os.environ, **environment}, "out": str(out), "err": str(err)}
            self._parent.stdin.write(json.dumps(request) + "\n")
            self._parent.stdin.flush()
            status = int(self._parent.stdout.readline())
            return subprocess.CompletedProcess(request["arguments"], status, out.read_text(), err.read_text())
