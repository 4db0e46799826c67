"""Steps of a running job recorded by torch.profiler: on demand, planned, and never at the job's expense."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stepwatch.cli.main import main
from stepwatch.probe import Hook
from stepwatch.probe.store.profile_requests import read_profile_answer, request_profile
from stepwatch.probe.store.profiles import profiles_of
from stepwatch.probe.store.reader import Trace
from tests.deep.jobs import running

JOB = """
import sys, time, torch
from pathlib import Path
from torch import nn
from stepwatch.probe import Hook

run, stop = Path(sys.argv[1]), Path(sys.argv[2])
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
with Hook(run, model=model, optimizer=optimizer):
    while not stop.exists():
        optimizer.zero_grad()
        model(torch.ones(4, 8)).square().mean().backward()
        optimizer.step()
        time.sleep(0.005)
"""


class Job:
    """A small training job in this process."""

    def __init__(self, run: Path, **options: Any) -> None:
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.hook = Hook(run, model=self.model, optimizer=self.optimizer, system_interval=0, **options)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(4, 8)).square().mean().backward()
        self.optimizer.step()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            self.step()


@pytest.fixture(scope="module")
def live_job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    with running(JOB, tmp_path_factory.mktemp("live"), lambda run: (run / "ranks" / "rank=00000.json").exists()) as job:
        yield job


def updates(events: Iterable[Any]) -> int:
    """Optimizer steps that a profiler of the script's own has seen."""
    return sum(event.name == "Optimizer.step#SGD.step" for event in events)


def stepwatch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stepwatch.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_planned_steps_are_recorded_and_summarised(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", profile_steps=[*range(5, 8), 10])
    job.steps(12)
    job.hook.close()
    profiles = profiles_of(tmp_path / "run")
    assert [(profile.step, profile.steps) for profile in profiles] == [(5, 3), (10, 1)]
    summary = profiles[0].summary()
    assert [step.number for step in summary.steps] == [5, 6, 7]
    for step in summary.steps:
        assert step.forward_ns > 0 and step.backward_ns > 0 and step.optimizer_ns > 0
        assert step.forward_ns + step.backward_ns + step.optimizer_ns < step.duration_ns
    operators = {operator.name: operator for operator in summary.operators}
    assert operators["aten::addmm"].calls == 6  # two layers, three steps
    assert operators["aten::addmm"].dtypes == ("float32",)
    assert summary.memory[0].allocations > 0
    with gzip.open(profiles[0].trace) as file:
        assert json.load(file)["traceEvents"]


def test_a_profile_can_begin_with_the_first_step(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", profile_steps=range(2))
    job.steps(4)
    job.hook.close()
    (profile,) = profiles_of(tmp_path / "run")
    assert [step.number for step in profile.summary().steps] == [0, 1]


def test_profiled_steps_have_no_times_and_do_not_count_for_the_budget(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", profile_steps=range(20, 60))
    job.steps(80)
    job.hook.close()
    rows = Trace(tmp_path / "run").table("steps").to_pandas().set_index("step")
    assert rows.loc[20:59, "duration_ns"].isna().all()
    assert rows.loc[rows.index.difference(range(20, 60)), "duration_ns"].notna().all()
    # What it took to start and stop belongs to no step.
    usual = rows.loc[1:19, "duration_ns"].max()
    paused = profiles_of(tmp_path / "run")[0].paused_seconds
    assert paused > 0 and rows.loc[60, "duration_ns"] < usual + paused * 1e9


def test_a_profiler_of_the_script_is_left_alone(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", profile_steps=range(3, 5))
    with torch.profiler.profile() as theirs:
        job.steps(8)
    job.hook.close()
    assert profiles_of(tmp_path / "run") == []
    assert any("profiler of the script's own" in note for note in Trace(tmp_path / "run").notes)
    assert updates(theirs.events()) == 8


def test_a_profiler_that_the_script_starts_meanwhile_gets_its_turn(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", profile_steps=range(3, 50))
    job.steps(6)
    with torch.profiler.profile() as theirs:
        job.steps(4)
    job.steps(2)
    job.hook.close()
    (profile,) = profiles_of(tmp_path / "run")
    assert (profile.step, profile.steps) == (3, 3)
    assert updates(theirs.events()) == 4


def test_a_schedule_of_the_script_that_was_warming_up_gets_its_steps(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", profile_steps=range(3, 50))
    recorded: list[Any] = []
    schedule = torch.profiler.schedule(wait=0, warmup=5, active=2, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=lambda p: recorded.extend(p.events())) as theirs:
        for _ in range(9):
            job.step()
            theirs.step()
    job.hook.close()
    assert updates(recorded) == 2
    (profile,) = profiles_of(tmp_path / "run")
    assert profile.step == 3


def test_a_job_that_ends_keeps_the_steps_that_were_profiled(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", profile_steps=range(3, 50))
    job.steps(6)
    job.hook.close()
    (profile,) = profiles_of(tmp_path / "run")
    assert (profile.step, profile.steps) == (3, 3)
    assert [step.number for step in profile.summary().steps][:3] == [3, 4, 5]
    assert not torch.autograd._profiler_enabled()


def test_a_request_is_carried_out_and_answered(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(run)
    job.steps(3)
    request = request_profile(run, 2, [0], "looks slow", "somebody")

    def state() -> str:
        answer = read_profile_answer(run, 0)
        return answer.state if answer is not None and answer.request_id == request else ""

    job.until(lambda: state() == "done")
    job.hook.close()
    (profile,) = profiles_of(run)
    assert (profile.steps, profile.by, profile.reason) == (2, "somebody", "looks slow")


def test_steps_of_an_unchanged_script_can_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.py").write_text(
        "import torch\n"
        "model = torch.nn.Linear(4, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "for _ in range(8):\n"
        "    model(torch.ones(2, 4)).sum().backward()\n"
        "    optimizer.step()\n"
    )
    done = stepwatch("run", "-o", tmp_path / "run", "--profile-steps", "3:5", tmp_path / "train.py")
    assert done.returncode == 0, done.stderr
    (profile,) = profiles_of(tmp_path / "run")
    assert (profile.step, profile.steps) == (3, 2)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(["run", "--profile-steps", "5:3", str(tmp_path / "train.py")])
    said = capsys.readouterr().err
    assert exit.value.code == 2 and said.count("\n") == 1 and "100:103" in said


def test_models_without_an_optimizer_are_profiled_by_forward_passes(tmp_path: Path) -> None:
    model = nn.Linear(8, 1).eval()
    with Hook(tmp_path / "run", model=model, system_interval=0, profile_steps=range(2, 4)), torch.no_grad():
        for _ in range(6):
            model(torch.ones(4, 8))
    (profile,) = profiles_of(tmp_path / "run")
    assert [step.number for step in profile.summary().steps] == [2, 3]


@pytest.mark.parametrize("steps", [[-1], range(101), ["a"], [1.5]])
def test_steps_that_cannot_be_planned_are_refused(tmp_path: Path, steps: Any) -> None:
    with pytest.raises(ValueError, match="profile_steps"):
        Job(tmp_path / "run", profile_steps=steps)


def test_the_command_profiles_a_live_job_and_shows_it(live_job: tuple[Path, subprocess.Popen[str]]) -> None:
    run, _ = live_job
    shown = stepwatch("profile", run, "--steps", 2, "--json")
    assert shown.returncode == 0, shown.stderr
    (profile,) = json.loads(shown.stdout)
    assert profile["steps"] == 2 and len(profile["summary"]["steps"]) == 2
    assert "rank 0 has profiled" in shown.stderr
    again = stepwatch("profile", run)
    assert again.returncode == 0 and "aten::addmm" in again.stdout and "asked for by a person" in again.stdout


def test_the_command_can_be_interrupted(live_job: tuple[Path, subprocess.Popen[str]]) -> None:
    run, process = live_job
    process.send_signal(signal.SIGSTOP)  # it will not answer
    (run / "control" / "profile.json").unlink(missing_ok=True)
    waiting = subprocess.Popen(
        [sys.executable, "-m", "stepwatch.cli", "profile", str(run), "--steps", "2"], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (run / "control" / "profile.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=60)
    finally:
        process.send_signal(signal.SIGCONT)
        waiting.kill()
    assert waiting.returncode == 130
    assert said == "stepwatch: interrupted; the job profiles the steps all the same\n"


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path / "run")
    job.steps(2)
    job.hook.close()
    capsys.readouterr()
    cases = {
        ("--steps", 2): "the run is not live",
        (): "no step was profiled",
        ("--all-ranks",): "--all-ranks goes with --steps",
        ("--rank", 3, "--steps", 1): "has no rank 3",
        ("--steps", 1, "--at", 3): "does not go with --steps",
    }
    for arguments, line in cases.items():
        with pytest.raises(SystemExit) as exit:
            main(["profile", str(tmp_path / "run"), *map(str, arguments)])
        said = capsys.readouterr().err
        assert exit.value.code == 2 and line in said and said.count("\n") == 1, said


def test_a_profile_that_cannot_be_written_does_not_stop_the_job(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(run, profile_steps=range(2, 4))
    (run / "profiles").write_text("in the way")
    job.steps(6)
    job.hook.close()
    assert job.hook.step == 6
    assert any("it could not be kept" in note for note in Trace(run).notes)


def test_no_thread_is_left_behind(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", profile_steps=range(2, 4))
    job.steps(6)
    job.hook.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "stepwatch-profile"]
