"""Jobs that do not answer are ended; nothing else is touched. All processes are real."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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


children: list[psutil.Process] = []


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    started: list[subprocess.Popen[str]] = []
    children.clear()

    def launch(kind: str) -> subprocess.Popen[str]:
        job = subprocess.Popen(
            [sys.executable, "-c", HANGING, kind],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(job)
        assert job.stdout is not None
        assert job.stdout.readline().strip()
        return job

    yield launch
    for job in started:
        job.kill()
        job.wait()
    for child in children:
        if child.is_running():
            child.kill()


def stop(run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stepwatch.cli", "stop", str(run), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_job_that_hangs_is_not_ended_unless_that_was_asked_for(tmp_path: Path, start) -> None:
    job = start("hanging")
    done = stop(tmp_path / "run", "--wait", "0.5")
    assert done.returncode == 1 and "the request stands" in done.stderr
    assert job.poll() is None


def test_a_job_that_hangs_gets_sigterm_and_its_trace_is_whole(tmp_path: Path, start) -> None:
    job = start("hanging")
    done = stop(tmp_path / "run", "--wait", "0.5", "--kill", "--grace", "20")
    assert done.returncode == 0, done.stderr
    assert f"sent SIGTERM to process {job.pid}" in done.stdout and "SIGKILL" not in done.stdout
    assert job.wait(timeout=10) == -signal.SIGTERM
    trace = Trace(tmp_path / "run")
    end = trace.end(0)
    assert end is not None and end.status == "signal"
    assert trace.table("steps").num_rows == 5


def test_a_job_that_ignores_sigterm_is_killed(tmp_path: Path, start) -> None:
    job = start("deaf")
    done = stop(tmp_path / "run", "--wait", "0.2", "--kill", "--grace", "0.5")
    assert done.returncode == 0, done.stderr
    assert f"sent SIGKILL to process {job.pid}" in done.stdout
    assert job.wait(timeout=10) == -signal.SIGKILL
    psutil.wait_procs(children, timeout=5)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


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
    tmp_path: Path, start, change: dict[str, object], message: str
) -> None:
    job = start("hanging")
    identity = Trace(tmp_path / "run").attempts(0).entries[-1]
    assert recorded_process(identity).pid == job.pid
    with pytest.raises(NotThatProcess, match=message):
        recorded_process({**identity, **change})


def test_a_number_that_was_given_again_is_left_alone(tmp_path: Path, start) -> None:
    """The recorded job is gone and an innocent process has its number, as far as the run's directory says."""
    job = start("hanging")
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    path = tmp_path / "run" / "ranks" / "rank=00000.json"
    job.kill()
    job.wait()
    content = json.loads(path.read_text())
    content["attempts"][-1]["pid"] = bystander.pid
    path.write_text(json.dumps(content))
    done = stop(tmp_path / "run", "--wait", "0.2", "--kill", "--grace", "0.2")
    time.sleep(0.3)
    alive = bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert alive and done.returncode == 2 and "not live" in done.stderr
