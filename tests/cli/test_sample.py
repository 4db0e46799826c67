"""Jobs without a hook, sampled from outside: real processes, started and ended in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepwatch.probe.store.reader import Trace
from tests.processes import kill_tree

SAMPLE = [sys.executable, "-m", "stepwatch.cli", "sample", "--interval", "0.1"]
JOB = """
import os, subprocess, sys, time
print(os.getpid(), flush=True)
child = subprocess.Popen([sys.executable, "-c", "b = bytearray(60 << 20); import time; time.sleep(600)"])
kept = bytearray(30 << 20)
try:
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.05)
finally:
    child.kill()
raise SystemExit(3)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(*command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    yield run
    for process in started:
        kill_tree(process)


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def resident(run: Path) -> float:
    if not (run / "run.json").exists():
        return 0.0
    rows = Trace(run).system(metrics=["memory_rss_bytes"]).to_pandas()
    return float(rows.loc[rows["device"] == "job", "value"].max()) if len(rows) else 0.0


def test_a_command_is_sampled_with_its_children_and_its_status_passed_on(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    run = tmp_path / "run"
    sampler = start(*SAMPLE, "-o", str(run), sys.executable, "-c", JOB, str(tmp_path / "end"))
    wait_for(lambda: resident(run) > 90 << 20)  # the job and its child, not the sampler
    (tmp_path / "end").touch()
    assert sampler.wait(timeout=120) == 3
    trace = Trace(run)
    end = trace.end(0)
    assert end is not None and (end.status, end.reason) == ("exception", "exit status 3")
    assert trace.info.command[0] == sys.executable and "sampled from outside" in trace.notes[0]
    assert {"node", "process", "job"} <= set(trace.system()["device"].to_pylist())
    again = subprocess.run([*SAMPLE, "-o", str(run), "true"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 2 and again.stderr == f"stepwatch: {run}: holds a run; expected a new directory\n"


def test_a_job_that_runs_is_sampled_until_it_ends(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    run = tmp_path / "run"
    job = start(sys.executable, "-c", JOB, str(tmp_path / "end"))
    sampler = start(*SAMPLE, "-o", str(run), "--pid", str(job.pid))
    wait_for(lambda: resident(run) > 90 << 20)
    (tmp_path / "end").touch()
    job.wait(timeout=60)
    assert sampler.wait(timeout=120) == 0
    end = Trace(run).end(0)
    assert end is not None and end.status == "finished"


def test_interrupting_the_sampler_leaves_a_job_that_ran_already_alone(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    run = tmp_path / "run"
    job = start(sys.executable, "-c", JOB, str(tmp_path / "end"))
    sampler = start(*SAMPLE, "-o", str(run), "--pid", str(job.pid))
    wait_for(lambda: resident(run) > 0)
    sampler.send_signal(signal.SIGINT)
    assert sampler.wait(timeout=120) == 0
    assert job.poll() is None
    end = Trace(run).end(0)
    assert end is not None and (end.status, end.reason) == ("stopped", "sampling was ended while the job went on")


def test_ending_the_sampler_ends_the_job_that_it_started(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    run = tmp_path / "run"
    sampler = start(
        *SAMPLE,
        "-o",
        str(run),
        sys.executable,
        "-c",
        "import os, time; print(os.getpid(), flush=True); time.sleep(600)",
    )
    assert sampler.stdout is not None
    pid = int(sampler.stdout.readline())
    wait_for(lambda: resident(run) > 0)
    sampler.terminate()
    assert sampler.wait(timeout=120) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    end = Trace(run).end(0)
    assert end is not None and (end.status, end.reason) == ("signal", "SIGTERM")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "expected a command to start, or --pid of a job that runs"),
        (["--pid", "1", "true"], "expected a command to start, or --pid of a job that runs, not both"),
        (["--pid", "4194305"], "process 4194305 does not run; expected the number of a job's process on this machine"),
        (["no-such-program"], "no-such-program: no such program; expected the command that starts the job"),
    ],
)
def test_what_cannot_be_sampled_is_said_in_one_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    run = tmp_path / "run"
    done = subprocess.run([*SAMPLE, "-o", str(run), *arguments], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (2, f"stepwatch: {told}\n")
    assert not run.exists()
