"""Jobs that do not answer are ended; nothing else is touched. All processes are real."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.termination import NotThatProcess, recorded_process

HANGING = """
import signal, subprocess, sys, time, torch
from torch import nn
from stepwatch.probe import Hook
model = nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
hook = Hook("run", model=model, optimizer=optimizer)
for _ in range(5):
    optimizer.zero_grad()
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
while True:
    time.sleep(0.1)
"""


class Hanging:
    """A job that hangs, with a process of its own, in a directory.

    Attributes:
        process: the job.
        child: the process that it has started.
    """

    def __init__(self, folder: Path, kind: str = "hanging") -> None:
        command = [sys.executable, "-c", HANGING, kind]
        self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.child = psutil.Process(int(self.process.stdout.readline()))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.child.is_running():
            self.child.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Hanging]]:
    with ExitStack() as ending:

        def launch(kind: str) -> Hanging:
            job = Hanging(tmp_path, kind)
            ending.callback(job.end)
            return job

        yield launch


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hanging, Path]]:
    """A job that outlives every test that may not touch it, and its run."""
    folder = tmp_path_factory.mktemp("hanging")
    job = Hanging(folder)
    yield job, folder / "run"
    job.end()


Start = Callable[[str], Hanging]


def stop(run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stepwatch.cli", "stop", str(run), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_job_that_hangs_is_not_ended_unless_that_was_asked_for(hanging: tuple[Hanging, Path]) -> None:
    job, run = hanging
    done = stop(run, "--wait", "0.5")
    assert done.returncode == 1 and "the request stands" in done.stderr
    assert job.process.poll() is None


def test_a_job_that_hangs_gets_sigterm_and_its_trace_is_whole(tmp_path: Path, start: Start) -> None:
    job = start("hanging").process
    done = stop(tmp_path / "run", "--wait", "0.5", "--kill", "--grace", "50")
    assert done.returncode == 0, done.stderr
    assert f"sent SIGTERM to process {job.pid}" in done.stdout and "SIGKILL" not in done.stdout
    assert job.wait(timeout=60) == -signal.SIGTERM
    trace = Trace(tmp_path / "run")
    end = trace.end(0)
    assert end is not None and end.status == "signal"
    assert trace.table("steps").num_rows == 5


def test_a_job_that_ignores_sigterm_is_killed(tmp_path: Path, start: Start) -> None:
    hanging = start("deaf")
    job = hanging.process
    done = stop(tmp_path / "run", "--wait", "0.2", "--kill", "--grace", "0.5")
    assert done.returncode == 0, done.stderr
    assert f"sent SIGKILL to process {job.pid}" in done.stdout
    assert job.wait(timeout=60) == -signal.SIGKILL
    psutil.wait_procs([hanging.child], timeout=60)
    assert not hanging.child.is_running() or hanging.child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"process_start_time": 1.0}, "was started at another time"),
        ({"executable": "/bin/false"}, "recorded was"),
        ({"user": "somebody-else"}, "recorded was somebody-else"),
        ({"boot_id": "another"}, "started again since"),
        ({"host": "elsewhere"}, "it runs on elsewhere"),
        ({"pid": None}, "incomplete"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_process_that_is_not_the_recorded_one_is_never_touched(
    hanging: tuple[Hanging, Path], change: dict[str, object], message: str
) -> None:
    job, run = hanging
    identity = Trace(run).attempts(0).entries[-1]
    assert recorded_process(identity).pid == job.process.pid
    with pytest.raises(NotThatProcess, match=message):
        recorded_process({**identity, **change})


def test_a_number_that_was_given_again_is_left_alone(tmp_path: Path, start: Start) -> None:
    """The recorded job is gone and an innocent process has its number, as far as the run's directory says."""
    job = start("hanging").process
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    path = tmp_path / "run" / "ranks" / "rank=00000.json"
    job.kill()
    job.wait()
    content = json.loads(path.read_text())
    content["attempts"][-1]["pid"] = bystander.pid
    path.write_text(json.dumps(content))
    done = stop(tmp_path / "run", "--wait", "0.2", "--kill", "--grace", "0.2")
    bystander.kill()
    assert bystander.wait() == -signal.SIGKILL  # and nothing came before this
    assert done.returncode == 2 and "not live" in done.stderr
