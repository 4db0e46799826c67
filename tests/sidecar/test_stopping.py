"""A job is stopped from outside: it is asked, and ended where it does not answer. All processes are real."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stepwatch.probe.store.control import StopWatcher, acknowledge, read_request, request_stop
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.sidecar import stopping
from stepwatch.rules.sidecar.stopping import DryRun, EscalatingStop
from stepwatch.rules.termination import terminate
from tests.sidecar.conftest import Job

SILENT = """
import signal, sys, time
from pathlib import Path
from tests.sidecar.conftest import Job
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
job = Job(Path(sys.argv[1])).train(1, 200)
print("ready", flush=True)
time.sleep(600)
"""

SAVING = """
import sys, time, torch
from torch import nn
from stepwatch.probe import Hook
torch.set_num_threads(1)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=1e6)

def checkpoint(step):
    time.sleep(2)
    torch.save(model.state_dict(), sys.argv[1] + ".pt")
    return sys.argv[1] + ".pt"

hook = Hook(sys.argv[1], model=model, optimizer=optimizer, checkpoint=checkpoint)
for _ in range(100000):
    optimizer.zero_grad()
    (model(torch.randn(8, 4)) ** 2).mean().backward()
    optimizer.step()
    time.sleep(0.005)
"""

FINDING = Finding("Spike", Severity.ERROR, 1, 1, ("loss",), 200.0, 100.0, "loss is 200", "nothing")

Launch = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    jobs: list[subprocess.Popen[str]] = []

    def start(kind: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SILENT, str(tmp_path / "run"), kind]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        jobs.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env))
        assert jobs[-1].stdout is not None and jobs[-1].stdout.readline() == "ready\n"
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
        job.wait()


def test_a_job_that_saves_its_checkpoint_is_given_the_time(tmp_path: Path) -> None:
    """The checkpoint takes longer than an answer may, and is written whole; a dry run beforehand changes nothing."""
    watch = [sys.executable, "-m", "stepwatch.cli", "watch", str(tmp_path), "--stop", "--answer", "1.5", "--once"]
    watching = subprocess.Popen(watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    job = subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path / "run")], stderr=subprocess.PIPE, text=True)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1 and "TrainingStopped" in errors  # by itself, not by a signal
    watching.communicate(timeout=120)
    assert (tmp_path / "run.pt").stat().st_size > 0
    done = [action for row in Trace(tmp_path / "run").findings() for action in row["actions"]]
    assert {action["outcome"] for action in done} == {"done"}
    assert any(f"steps, checkpoint {tmp_path / 'run.pt'}" in action["detail"] for action in done)


def test_a_job_that_does_not_answer_gets_sigterm(tmp_path: Path, launch: Launch) -> None:
    job = launch("hanging")
    done = EscalatingStop(answer=0.2, grace=20).apply(FINDING, tmp_path / "run")
    assert done == f"no answer in 0.2 s; rank 0: sent SIGTERM to process {job.pid}"
    assert job.wait() == -signal.SIGTERM
    request = read_request(tmp_path / "run")
    assert request is not None and request.reason == "Spike: loss is 200"
    assert EscalatingStop().apply(FINDING, tmp_path / "run") == "nothing to stop: the job had ended"


def test_a_job_that_ignores_sigterm_is_killed(tmp_path: Path, launch: Launch) -> None:
    job = launch("deaf")
    done = EscalatingStop(answer=0.1, grace=0.3).apply(FINDING, tmp_path / "run")
    assert done.endswith(f"rank 0: sent SIGKILL to process {job.pid}")
    job.wait()  # its status may have been collected already


def test_a_dry_run_says_what_would_be_done(tmp_path: Path, launch: Launch) -> None:
    job = launch("hanging")
    done = DryRun().apply(FINDING, tmp_path / "run")
    assert done == f"would ask 1 rank(s) to stop; then end process {job.pid} of rank 0"
    assert read_request(tmp_path / "run") is None and job.poll() is None


def test_a_stop_that_fails_is_shouted_about_and_tried_again(
    tmp_path: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trace says another user's process writes it: nobody is signalled; then it turns out to be this one's."""
    job = launch("hanging")
    path = tmp_path / "run" / "ranks" / "rank=00000.json"
    recorded = path.read_text()
    content = json.loads(recorded)
    content["attempts"][-1]["user"] = "somebody-else"
    path.write_text(json.dumps(content))
    shouted: list[str] = []

    def pause(seconds: float) -> None:
        if seconds == stopping._PAUSES[0]:
            assert psutil.pid_exists(job.pid) and job.poll() is None
            path.write_text(recorded)

    monkeypatch.setattr(stopping.time, "sleep", pause)
    stop = EscalatingStop(answer=0.0, grace=5.0, shout=lambda run, text: shouted.append(text))
    done = stop.apply(FINDING, tmp_path / "run")
    assert done.endswith(f"sent SIGTERM to process {job.pid}")
    (text,) = shouted
    assert "could not be stopped" in text and "recorded was somebody-else" in text and "again in 5 s" in text


def test_a_job_that_cannot_be_asked_is_ended_and_a_channel_that_fails_does_not_keep_it_alive(
    tmp_path: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is full where the request is to be written; the first attempt to end the process fails as well."""
    job = launch("hanging")
    tries: list[float] = []

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def end(trace: Trace, grace: float, say: Callable[[str], None]) -> bool:
        tries.append(grace)
        if len(tries) == 1:
            fail()
        return terminate(trace, grace, say)

    monkeypatch.setattr(stopping, "request_stop", fail)
    monkeypatch.setattr(stopping, "terminate", end)
    monkeypatch.setattr(stopping, "_PAUSES", (0.01,))
    done = EscalatingStop(answer=60, grace=20, shout=fail).apply(FINDING, tmp_path / "run")
    assert "it cannot be asked: [Errno 28] No space left on device" in done
    assert done.endswith(f"rank 0: sent SIGTERM to process {job.pid}") and job.wait() == -signal.SIGTERM
    assert "could not be stopped ([Errno 28] No space left on device); trying again in 0.01 s" in caplog.text
    assert "that cannot be told" in caplog.text


def test_a_job_is_asked_once_however_often_the_sidecar_is_started(tmp_path: Path, launch: Launch) -> None:
    launch("hanging")
    stopping._ask(Trace(tmp_path / "run"), "first")
    stopping._ask(Trace(tmp_path / "run"), "second")
    request = read_request(tmp_path / "run")
    assert request is not None and request.reason == "first"


def test_a_job_that_its_launcher_starts_again_is_left_alone(tmp_path: Path, launch: Launch) -> None:
    """A stop is under way when the job dies and is started again: the new attempt has done nothing wrong yet."""
    job = launch("hanging")
    job.kill()
    job.wait()
    again = Job(tmp_path / "run", start_step=2).train(1)
    done = EscalatingStop(answer=0.1).apply(FINDING, tmp_path / "run")
    assert done == "nothing to stop: the job was started again since"
    again.end()


def test_a_request_is_heard_whatever_the_clock_of_who_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request_stop(tmp_path, "an earlier attempt", by="a test")
    watcher = StopWatcher(tmp_path)
    assert watcher.poll() is None
    monkeypatch.setattr("stepwatch.probe.store.control.time.time_ns", lambda: 0)
    request_stop(tmp_path, "this one", by="a test")
    request = watcher.poll()
    assert request is not None and request.reason == "this one"
    assert watcher.poll() is None


def test_an_answer_is_said_once_however_many_findings_ask_for_it(
    tmp_path: Path, begin: type[Job], caplog: pytest.LogCaptureFixture
) -> None:
    job = begin(tmp_path / "run").train(1.0)
    stop = EscalatingStop(answer=60)
    answering = threading.Thread(target=answer_when_asked, args=(job.path,), daemon=True)
    answering.start()
    done = [stop.apply(FINDING, job.path) for _ in range(2)]
    answering.join()
    assert done == ["rank 0 stopped after 1 steps, checkpoint model.pt"] * 2
    assert [record.message for record in caplog.records] == [f"{job.path}: {done[0]}"]


def answer_when_asked(run: Path) -> None:
    while (request := read_request(run)) is None:
        time.sleep(0.01)
    acknowledge(run, 0, request.id, step=1, checkpoint="model.pt")
