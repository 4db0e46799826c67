"""Many runs on a cluster of Dask workers, and with results that are kept from one time to the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stepwatch.probe.store.labels import change_labels
from stepwatch.probe.store.places import find_places
from stepwatch.rules.catalogue import configure
from stepwatch.rules.fleet.cluster import judge_on_cluster
from stepwatch.rules.fleet.judged import Judged
from stepwatch.rules.fleet.kept import KeptResults
from stepwatch.rules.fleet.processes import judge_runs
from stepwatch.rules.fleet.summary import group, summarise
from stepwatch.rules.testing import SyntheticRun
from tests.command import stepwatch

RUNS = 24
SLOW = """
import time
from stepwatch.rules.finding import Coverage
from stepwatch.rules.rule import Rule

class Slow(Rule):
    '''Takes its time over each run.'''
    def __init__(self) -> None:
        self.seen = False
    def observe(self, step):
        if not self.seen:
            self.seen = True
            time.sleep(0.05)
        return ()
    def coverage(self):
        return Coverage(decided=True)
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    for number in range(RUNS):
        broken = number % 8 == 3
        values = [float("nan") if broken and step >= 30 else 1 / (1 + step) for step in range(60)]
        run = SyntheticRun().loss(values).weights({"fc1.weight": 0.1}).write(folder / f"run-{number:02d}")
        change_labels(run, add=["team=vision" if number % 2 else "team=text"])
    (folder / "run-99").mkdir()
    (folder / "run-99" / "run.json").write_text("{")
    (folder / "slow.py").write_text(SLOW)
    return folder


def said(judged: list[Judged]) -> dict[str, object]:
    return {
        str(each.run): [[result.to_json() for result in each.analysis.results], each.lost_seconds, each.tags]
        if each.analysis
        else each.error
        for each in judged
    }


def workers() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_a_cluster_says_what_one_process_says_though_a_worker_is_killed(fleet: Path) -> None:
    runs = find_places([fleet])
    rules = ["recommended", f"{fleet / 'slow.py'}:Slow"]
    alone = list(judge_runs(runs, rules, processes=1))
    judged = []
    for each in judge_on_cluster(runs, rules, processes=2):
        judged.append(each)
        if len(judged) == RUNS // 3:
            working = workers()
            assert len(working) == 2
            working[0].send_signal(signal.SIGKILL)
    assert len(judged) == len(runs) == RUNS + 1
    assert said(judged) == said(alone)
    assert workers() == [], "none is left behind"


def test_a_scheduler_that_does_not_answer_is_one_line(fleet: Path) -> None:
    environment = {
        **os.environ,
        "DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:1",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s",
    }
    command = [sys.executable, "-m", "stepwatch.cli", "analyze", str(fleet), "--engine", "dask"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "tcp://127.0.0.1:1 does not answer" in done.stderr


def test_only_what_has_changed_is_judged_again(fleet: Path, tmp_path: Path) -> None:
    runs, file = find_places([fleet]), tmp_path / "results.jsonl"
    first = _kept(file, runs)
    assert len(first) == RUNS + 1
    recalled = _recalled(file, runs)
    # Findings come back to the last digit; the run that could not be judged is tried again.
    assert said(recalled) == said([each for each in first if each.analysis is not None])
    assert summarise(recalled).problems == summarise(first).problems
    with file.open("r+") as kept:  # killed in the middle of a line
        kept.seek(0, os.SEEK_END)
        kept.truncate(kept.tell() - 30)
    SyntheticRun().loss([1.0] * 70).write(fleet / "run-05")  # the job went on
    assert len(_recalled(file, runs)) == RUNS - 2
    assert len(_kept(file, runs)) == RUNS + 1
    assert len(_recalled(file, runs)) == RUNS
    assert _recalled(file, runs, ["Overfit.patience=9"]) == [], "other parameters may find something else"


def _kept(file: Path, runs: list[Path | str]) -> list[Judged]:
    with KeptResults(file, configure(None)) as kept:
        judged = list(kept.recall(runs))
        done = {each.run for each in judged}
        for each in judge_runs([run for run in runs if run not in done], None, processes=1):
            kept.keep(each)
            judged.append(each)
    return judged


def _recalled(file: Path, runs: list[Path | str], settings: list[str] | None = None) -> list[Judged]:
    with KeptResults(file, configure(None, settings or [])) as kept:
        return list(kept.recall(runs))


def test_the_command_keeps_results_and_groups_runs(fleet: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    command = ("analyze", fleet, "--results", file, "--by", "team", "--processes", 1)
    first = stepwatch(*command)
    assert first.returncode == 2 and "run-99" in first.stderr, "one cannot be judged"
    rows = [line.split() for line in first.stdout.splitlines()]
    assert ["vision", "12", "3"] in [row[:3] for row in rows], "every broken run is of that team"
    assert len(file.read_text().splitlines()) == RUNS
    again = stepwatch(*command, "--json")
    assert {len(json.loads(again.stdout))} == {RUNS} and len(file.read_text().splitlines()) == RUNS
    file.write_text("name,value\n")
    refused = stepwatch(*command)
    assert refused.returncode == 2 and "line 1 is not a verdict" in refused.stderr and refused.stdout == ""


def test_groups_are_by_user_model_tag_or_key(fleet: Path) -> None:
    judged = list(judge_runs(find_places([fleet / "run-02", fleet / "run-03"]), None, processes=1))
    assert [(each.name, each.runs, each.with_issues) for each in group(judged, "tag")] == [
        ("team=vision", 1, 1),
        ("team=text", 1, 0),
    ]
    (user,) = group(judged, "user")
    assert user.runs == 2 and user.name
    assert user.lost_hours == pytest.approx(29 / 3600), "from step 30 to step 59, a second each"
