"""Many runs at once: in several processes, with runs among them that cannot be judged."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.fleet.judged import Judged
from stepwatch.rules.fleet.processes import judge_runs
from stepwatch.rules.fleet.summary import summarise

STEPS = 150
RUNS = 12
DEADLY = """
import os
from stepwatch.rules.finding import Coverage
from stepwatch.rules.rule import Rule

class Deadly(Rule):
    '''Ends the process when it sees a loss of 13.'''
    def observe(self, step):
        if 13.0 in step.scalars.values():
            os._exit(9)
        return ()
    def coverage(self):
        return Coverage(decided=True)
"""


def write(run: Path, seed: int, *, breaks_at: int | None = None, unlucky: bool = False) -> None:
    """A run of a second per step, whose loss is NaN from a step on."""
    rng = np.random.default_rng(seed)
    writer = TraceWriter(run)
    for step in range(STEPS):
        loss = 2.3 * np.exp(-step / 40) + 0.1 + rng.normal(0, 0.01)
        if breaks_at is not None and step >= breaks_at:
            loss = np.nan
        if unlucky and step == 5:
            loss = 13.0
        scalars = [("CrossEntropyLoss_output_0", float(loss))]
        writer.submit(StepRecord(step, "TRAIN", step, step * 10**9, scalars=scalars))
    writer.close("finished", last_step=STEPS)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    for number in range(RUNS):
        write(folder / f"run-{number:02d}", number, breaks_at=100 if number in (3, 7, 8) else None)
    (folder / "run-99").mkdir()
    (folder / "run-99" / "run.json").write_text("{")
    return folder


def said(judged: list[Judged]) -> dict[str, object]:
    return {
        each.run.name: [finding.to_json() for finding in each.analysis.findings] if each.analysis else "error"
        for each in judged
    }


def test_processes_say_what_one_says(fleet: Path) -> None:
    runs = sorted(fleet.iterdir())
    alone = list(judge_runs(runs, None, processes=1))
    together = list(judge_runs(runs, None, processes=2))
    assert len(together) == RUNS + 1 and said(together) == said(alone)
    (failed,) = (each for each in together if each.analysis is None)
    assert failed.run.name == "run-99" and "not valid JSON" in failed.error


def test_what_the_runs_have_in_common_is_summed_up(fleet: Path) -> None:
    summary = summarise(judge_runs(sorted(fleet.iterdir()), ["DivergingLoss"], processes=1))
    assert (summary.runs, summary.with_issues, summary.failed, summary.undecided) == (RUNS + 1, 3, 1, 0)
    (problem,) = summary.problems
    assert problem.rule == "DivergingLoss" and [run.name for run in problem.runs] == ["run-03", "run-07", "run-08"]
    assert problem.first_step == 100
    assert summary.hours == pytest.approx(RUNS * (STEPS - 1) / 3600)
    assert 3 * 40 / 3600 < summary.wasted_hours <= 3 * 49 / 3600


def test_a_run_whose_process_dies_is_named_and_the_others_are_judged(fleet: Path, tmp_path: Path) -> None:
    rules = tmp_path / "deadly.py"
    rules.write_text(DEADLY)
    write(tmp_path / "unlucky", 0, unlucky=True)
    runs = [*sorted(fleet.glob("run-0*")), tmp_path / "unlucky"]
    judged = list(judge_runs(runs, [f"{rules}:Deadly"], processes=2))
    assert sorted(each.run for each in judged) == sorted(runs)
    (lost,) = (each for each in judged if each.analysis is None)
    assert lost.run.name == "unlucky" and "died" in lost.error


def stepwatch(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stepwatch.cli", "analyze", *map(str, args)]
    wide = {**os.environ, "COLUMNS": "300"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=wide)


def test_the_command_prints_a_line_per_run_and_a_summary(fleet: Path) -> None:
    done = stepwatch(fleet, "--processes", 2)
    assert done.returncode == 2, "one could not be judged"
    assert done.stderr.count("\n") == 1 and "run-99" in done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[1:3] for line in lines if "run-07 " in line] == [["ExplodingTensor", "100"]]
    assert sum("no issue" in line for line in lines) == RUNS - 3
    assert f"{RUNS + 1} runs: 3 with issues, 1 that could not be judged" in lines
    assert any("went by after an error began" in line for line in lines)


def test_json_lists_the_runs_in_order(fleet: Path) -> None:
    content = json.loads(stepwatch(f"{fleet}/run-0[78]", fleet / "run-99", "--json").stdout)
    assert [Path(entry["run"]).name for entry in content] == ["run-07", "run-08"]
    assert all(entry["wasted_seconds"] > 0 for entry in content)


def test_a_terminal_sees_a_bar_and_a_pipe_does_not(fleet: Path) -> None:
    terminal, side = pty.openpty()
    command = [sys.executable, "-m", "stepwatch.cli", "analyze", str(fleet), "--processes", "1"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=side, timeout=120)
    os.close(side)
    assert b"judging runs" in os.read(terminal, 1 << 16) and b"judging runs" not in done.stdout
    os.close(terminal)


def test_a_run_that_cannot_be_followed_does_not_keep_the_others(fleet: Path) -> None:
    done = stepwatch(fleet / "run-07", fleet / "run-99", "--follow")
    assert done.returncode == 2 and "ExplodingTensor" in done.stdout
    assert done.stderr.count("\n") == 1 and "run-99" in done.stderr
