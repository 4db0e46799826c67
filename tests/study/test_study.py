"""A directory of trials is watched as one: real jobs, real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.study.study import Study, StudySettings


class Trial:
    """A trial that logs an accuracy after every tenth step, and the loss at each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = TraceWriter(path, run_info={"job_name": path.name})
        self._step = 0

    def train(self, *accuracies: float, loss: float = 1.0) -> Trial:
        for accuracy in accuracies:
            for _ in range(10):
                record = StepRecord(self._step, "TRAIN", self._step, 0)
                record.scalars.append(("loss", loss))
                if self._step % 10 == 9:
                    record.scalars.append(("val/accuracy", accuracy))
                self._writer.submit(record)
                self._step += 1
        self._writer.flush()
        return self

    def train_on(self) -> None:
        """A step that says that the evaluation before it is over."""
        self._writer.submit(StepRecord(self._step, "TRAIN", self._step, 0, scalars=[("loss", 1.0)]))
        self._writer.flush()

    def end(self) -> None:
        self._writer.close("finished")


Look = Callable[[], list[tuple[str, str]]]


def looking(folder: Path, settings: str) -> Look:
    study = Study(StudySettings.parse(settings))

    def look() -> list[tuple[str, str]]:
        found = []
        for path in sorted(each.parent for each in folder.glob("*/run.json")):
            trace = Trace(path)
            found += [(path.name, finding.message) for finding in study.look(trace, live=trace.live())]
        return found

    return look


def test_a_trial_behind_the_others_is_given_up_once(tmp_path: Path) -> None:
    trials = [Trial(tmp_path / f"t{n}").train(0.5, 0.6) for n in range(5)]
    bad = Trial(tmp_path / "the bad one").train(0.1)
    look = looking(tmp_path, "grace=15,objective=val/accuracy:max,peers=5")
    assert look() == []
    for trial in trials:
        trial.train(0.7, 0.8)
    bad.train(0.2, 0.3).train_on()
    trials[0].end()
    ((name, message),) = look()
    assert name == "the bad one"
    assert message.startswith("the trial is behind the median of 5 others at step 29: best val/accuracy 0.3, of t0 0.")
    bad.train(0.3)
    assert look() == []
    for trial in (*trials[1:], bad):
        trial.end()


def test_losses_of_training_are_compared_where_nothing_was_evaluated_on_held_out_data(tmp_path: Path) -> None:
    trials = [Trial(tmp_path / f"t{n}") for n in range(3)]
    look = looking(tmp_path, "grace=30,peers=2")
    look()
    for trial, loss in zip(trials, (1.0, 2.0, 9.0), strict=True):
        trial.train(0, 0, 0, 0, 0, loss=loss)
    assert [name for name, _ in look()] == ["t2"]
    for trial in trials:
        trial.end()


def test_the_leader_may_take_its_time(tmp_path: Path) -> None:
    leader, other = Trial(tmp_path / "a"), Trial(tmp_path / "b")
    look = looking(tmp_path, "grace=10,patience=30,objective=val/accuracy:max")
    look()
    for trial, best in ((leader, 0.9), (other, 0.8)):
        trial.train(best, 0.1, 0.1, 0.1, 0.1, 0.1)
    ((name, message),) = look()
    assert name == "b" and "has not come further for 40 steps" in message
    for trial in (leader, other):
        trial.end()


JOB = """
import sys, torch, time
from stepwatch.probe import Hook
torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(256, 8)
y = (x @ torch.randn(8, 1)).squeeze()
for rate in map(float, sys.argv[2:]):
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with Hook(f"{sys.argv[1]}/rate-{rate:g}", model=model, optimizer=optimizer) as hook:
        for step in range(100000 if rate < 0.001 else 200):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x).squeeze(), y)
            loss.backward()
            optimizer.step()
            if step % 10 == 9:
                hook.log("val/mse", float(loss.detach()))
            time.sleep(0.01 if rate < 0.001 else 0)
"""


def test_real_trials_the_hopeless_one_is_stopped_and_the_study_summed_up(tmp_path: Path) -> None:
    """Three learn; one has a learning rate so low that it would take for ever."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "OMP_NUM_THREADS": "1"}
    job = [sys.executable, "-c", JOB, str(folder)]
    stepwatch = [sys.executable, "-m", "stepwatch.cli"]
    subprocess.run([*job, "0.1", "0.08", "0.06"], env=env, check=True, timeout=240)
    hopeless = subprocess.Popen([*job, "1e-7"], env=env)
    watch = [*stepwatch, "watch", str(folder), "--interval", "0.2", "--rules", "ExplodingTensor"]
    watching = subprocess.Popen([*watch, "--study", "grace=20,peers=3,objective=val/mse"], env=env)
    try:
        hopeless.wait(timeout=240)
        while not (actions := done_about(folder / "rate-1e-07")):
            time.sleep(0.1)
    finally:
        hopeless.kill()
        watching.terminate()
        watching.wait(timeout=60)
    assert actions == ["stop"]
    ask = [*stepwatch, "study", str(folder), "--objective", "val/mse", "--json"]
    summary = json.loads(subprocess.run(ask, capture_output=True, text=True, env=env, timeout=60).stdout)
    assert (summary["objective"], summary["goal"]) == ("val/mse", "min")
    trials = {Path(trial["run"]).name: trial for trial in summary["trials"]}
    assert [name for name, trial in trials.items() if trial["given_up"]] == ["rate-1e-07"]
    assert list(trials)[-1] == "rate-1e-07" and trials["rate-1e-07"]["status"] == "stopped"
    assert [trial["status"] for trial in trials.values()] == ["finished"] * 3 + ["stopped"]
    assert 0 <= summary["spared"] < 0.25


def done_about(run: Path) -> list[str]:
    rows = [row for row in Trace(run).findings() if row["rule"] == "Unpromising"]
    return [str(entry["action"]) for row in rows for entry in row["actions"]]


def test_a_study_without_what_was_named_is_one_line(tmp_path: Path) -> None:
    Trial(tmp_path / "a").train(0.1).end()
    for place, message in ((tmp_path / "a", "no trial has recorded 'speed'"), (tmp_path / "no", "no")):
        command = [sys.executable, "-m", "stepwatch.cli", "study", str(place), "--objective", "speed"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    done = subprocess.run([*command[:4], str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "1 trial, 0 given up" in done.stdout and done.stderr.count(str(broken)) == 1
