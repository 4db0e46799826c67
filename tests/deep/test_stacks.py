"""Where the threads of a live job are."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwatch.cli.main import main
from stepwatch.probe.store.reader import Trace
from stepwatch.rules import stacks
from stepwatch.rules.stacks import read_beat, script_threads
from tests.deep.jobs import running

JOB = """
import sys, threading, time, torch
from pathlib import Path
from torch import nn
from stepwatch.probe import Hook

def busy():
    until = time.monotonic() + 0.05
    while time.monotonic() < until:
        pass

def in_the_background():
    while True:
        time.sleep(0.5)

threading.Thread(target=in_the_background, name="helper", daemon=True).start()
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
with Hook(sys.argv[1], model=model, optimizer=optimizer):
    while not Path(sys.argv[2]).exists():
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        busy()
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    with running(JOB, tmp_path_factory.mktemp("job"), lambda run: read_beat(run, 0).get("signal")) as job:
        yield job


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return int(exit.value.code or 0)


def test_all_threads_of_the_script_are_shown(
    job: tuple[Path, subprocess.Popen[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    run, _ = job
    assert command("stacks", run, "--json") == 0
    (rank,) = json.loads(capfd.readouterr().out)
    assert rank["rank"] == 0 and rank["missing"] == ""
    assert len(rank["threads"]) == 2 and "train.py" in rank["threads"][0]
    assert "in_the_background" in rank["threads"][1]
    assert command("stacks", run) == 0
    shown = capfd.readouterr().out
    assert "rank 0, which said last: step" in shown and "stepwatch" not in shown.replace(str(run), "")
    assert Trace(run).live()


def test_lines_that_hold_the_time_are_told(
    job: tuple[Path, subprocess.Popen[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    run, _ = job
    assert command("stacks", run, "--seconds", 2, "--json") == 0
    (rank,) = json.loads(capfd.readouterr().out)
    if "note" in rank:
        pytest.skip(rank["note"])
    inside = sum(line["share"] for line in rank["lines"] if line["line"].startswith("busy "))
    assert inside > 0.5
    assert {line["thread"] for line in rank["lines"]} == {"MainThread", "helper"}


def test_where_py_spy_may_not_look_the_stacks_of_now_are_shown(
    job: tuple[Path, subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    refusing = tmp_path / "py-spy"
    refusing.write_text("#!/bin/sh\necho 'Permission Denied: Try running again' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setattr(stacks, "_py_spy", lambda: str(refusing))
    assert command("stacks", job[0], "--seconds", 1) == 0
    shown = capfd.readouterr().out
    assert "Permission Denied" in shown and "train.py" in shown


def test_without_py_spy_one_line_says_how_to_get_it(
    job: tuple[Path, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stacks.shutil, "which", lambda *arguments, **options: None)
    assert command("stacks", job[0], "--seconds", 1) == 2
    assert 'pip install "stepwatch[profile]"' in capfd.readouterr().err


def test_a_process_that_does_not_answer_is_said(
    job: tuple[Path, subprocess.Popen[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    run, process = job
    process.send_signal(signal.SIGSTOP)
    try:
        assert command("stacks", run) == 1
    finally:
        process.send_signal(signal.SIGCONT)
    assert "no stacks: it did not answer" in capfd.readouterr().out
    assert command("stacks", run, "--rank", 3) == 2
    assert "has no rank 3" in capfd.readouterr().err


def test_threads_of_the_hook_are_left_out_and_no_others() -> None:
    hooks = 'Thread 0x1 (most recent call first):\n  File "/x/probe/sampler.py", line 81 in _run'
    trains = (
        "Current thread 0x2 (most recent call first):\n"
        '  File "/t/autograd/graph.py", line 9 in _engine_run_backward\n'
        '  File "/x/probe/losses.py", line 69 in heard_backward\n'
        '  File "train.py", line 3 in <module>'
    )
    assert script_threads(f"{hooks}\n\n{trains}\n") == [trains]
