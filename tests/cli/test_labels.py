"""Tags, notes and baselines: given by commands and by the hook, shown by the others; the list of runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepwatch.probe.store.labels import Labels, change_labels, read_labels
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.sql import query
from stepwatch.rules.testing import SyntheticRun
from tests.command import stepwatch

JOB = """
import sys, torch
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(3):
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
"""


def printed(*args: object) -> Any:
    done = stepwatch(*args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for name, level in (("slow", 2.0), ("fast", 1.0), ("broken", float("nan"))):
        run = SyntheticRun(20).loss(lambda step, level=level: level / (1 + step))
        (run if name == "slow" else run.scalar("accuracy", lambda step, level=level: level * step)).write(folder / name)
    return folder


def test_what_is_said_of_a_run_is_shown_everywhere(runs: Path) -> None:
    before = (runs / "fast" / "run.json").read_bytes()
    assert stepwatch("tag", runs / "fast", "good", "team=vision", "--note", "the one", "--baseline").returncode == 0
    said = {"run": str(runs / "fast"), "tags": ["good", "team=vision"], "note": "the one", "baseline": True}
    assert printed("tag", runs / "fast") == said
    assert (runs / "fast" / "run.json").read_bytes() == before

    shown = stepwatch("show", runs / "fast").stdout
    assert "baseline, #good #team=vision: the one" in shown
    assert query("SELECT tags, note FROM runs WHERE baseline", [runs]).to_pylist() == [
        {"tags": ["good", "team=vision"], "note": "the one"}
    ]
    assert [row["run"] for row in printed("list", runs, "--tag", "good")] == [str(runs / "fast")]


def test_tags_are_taken_away_and_a_note_is_replaced(runs: Path) -> None:
    change_labels(runs / "slow", add=["a", "b"], note="old")
    assert stepwatch("tag", runs / "slow", "c", "--remove", "a", "--note", "").returncode == 0
    assert read_labels(runs / "slow") == Labels(("b", "c"), "")
    assert len(printed("tag", runs, "all")) == 3
    assert read_labels(runs / "slow").tags == ("b", "c", "all")


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["a b"], "tag 'a b' is not one; expected a word"),
        (["x", "--remove", "y"], "has no tag 'y'"),
        (["a,b"], "tag 'a,b' is not one"),
    ],
)
def test_what_is_no_tag_changes_nothing(runs: Path, arguments: list[str], text: str) -> None:
    done = stepwatch("tag", runs / "slow", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and text in done.stderr
    assert read_labels(runs / "slow") == Labels()


def test_a_directory_has_one_baseline(runs: Path) -> None:
    refused = stepwatch("tag", runs, "--baseline")
    assert refused.returncode == 2 and "holds 3 runs" in refused.stderr
    assert "--baseline" in stepwatch("compare", runs / "slow").stderr, "says how one is marked"
    stepwatch("tag", runs / "slow", "--baseline")
    stepwatch("tag", runs / "fast", "--baseline")
    assert [row["run"] for row in printed("list", runs) if row["baseline"]] == [str(runs / "fast")]
    assert printed("compare", runs)["runs"] == [str(runs / name) for name in ("fast", "broken", "slow")]
    assert printed("compare", runs / "slow")["runs"] == [str(runs / "fast"), str(runs / "slow")]
    assert printed("compare", runs / "slow", runs / "fast")["runs"][0] == str(runs / "slow"), "the one that is named"


def test_the_best_by_a_scalar_comes_first(runs: Path) -> None:
    (runs / "unreadable").mkdir()
    (runs / "unreadable" / "run.json").write_text("{")
    by_loss = printed("list", runs, "--sort", "loss")
    assert [Path(row["run"]).name for row in by_loss] == ["fast", "slow", "broken", "unreadable"]
    assert by_loss[0]["objective"]["best"] == pytest.approx(0.05)
    assert by_loss[0]["objective"]["best_step"] == 19 and by_loss[0]["step"] == 19
    by_accuracy = printed("list", runs, "--sort", "accuracy")
    assert Path(by_accuracy[0]["run"]).name == "fast" and by_accuracy[0]["objective"]["goal"] == "max"
    refused = stepwatch("list", runs, "--sort", "acuracy")
    assert refused.returncode == 2 and "'acuracy'" in refused.stderr and refused.stdout == ""
    table = stepwatch("list", runs)
    assert "unreadable" in table.stdout and "not valid JSON" in table.stderr


def test_a_script_is_recorded_with_its_tags(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(JOB)
    for tag in ("first", "second"):  # the job starts again
        words = ["run", "-o", "run", "--tag", tag, "train.py"]  # in a process that nothing else has trained in
        command = [sys.executable, "-m", "stepwatch.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert read_labels(tmp_path / "run").tags == ("first", "second")
    assert Trace(tmp_path / "run").counters == {}
    refused = stepwatch("run", "-o", tmp_path / "other", "--tag", "not one", tmp_path / "train.py")
    assert refused.returncode == 2 and "'not one'" in refused.stderr and not (tmp_path / "other").exists()
