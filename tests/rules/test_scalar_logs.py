"""Logs of scalars by other tools: the same curves in every format give the same verdicts."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.replay import analyze
from stepwatch.rules.scalar_logs import import_log, judge_log, read_log
from tests.command import stepwatch

STEPS = 400
EVERY = 10


def curves(*, overfits: bool) -> tuple[list[float], dict[int, float]]:
    """Training losses by step, and evaluation losses every few steps."""
    rng = np.random.default_rng(0)
    steps = np.arange(STEPS)
    train = 2.3 * np.exp(-steps / 80) + 0.02 + rng.normal(0, 0.01, STEPS).clip(-0.015)
    evaluation = {}
    for step in range(0, STEPS, EVERY):
        rise = 0.004 * max(0, step - 150) if overfits else 0.0
        evaluation[step] = float(2.3 * math.exp(-step / 80) + 0.2 + rise + rng.normal(0, 0.01))
    return train.tolist(), evaluation


Write = Callable[[Path, list[float], dict[int, float]], Path]


def wide_csv(folder: Path, train: list[float], evaluation: dict[int, float]) -> Path:
    path = folder / "metrics.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", "train_loss", "val_loss", "note", "done"])
        for step, loss in enumerate(train):
            writer.writerow([step // 100, step, loss, evaluation.get(step, ""), "text", "True"])
    return path


def long_csv(folder: Path, train: list[float], evaluation: dict[int, float]) -> Path:
    path = folder / "long.csv"
    rows = [(step, "train_loss", loss) for step, loss in enumerate(train)]
    rows += [(step, "val_loss", loss) for step, loss in evaluation.items()]  # sorted by name, not by step
    path.write_text("step,name,value\n" + "".join(f"{step},{name},{loss}\n" for step, name, loss in rows))
    return path


def jsonl(folder: Path, train: list[float], evaluation: dict[int, float]) -> Path:
    path = folder / "log.jsonl"
    lines = [json.dumps({"_step": step, "train": {"loss": loss}, "_timestamp": 1e9}) for step, loss in enumerate(train)]
    lines += [json.dumps({"_step": step, "split": "val", "val": {"loss": loss}}) for step, loss in evaluation.items()]
    path.write_text("\n".join(lines) + '\n{"_step": 400, "train": {"lo')  # the last line is still being written
    return path


def trainer_state(folder: Path, train: list[float], evaluation: dict[int, float]) -> Path:
    path = folder / "trainer_state.json"
    history: list[dict[str, float]] = [{"epoch": s / 100, "loss": loss, "step": s} for s, loss in enumerate(train)]
    history += [{"epoch": s / 100, "eval_loss": loss, "step": s} for s, loss in evaluation.items()]
    path.write_text(json.dumps({"best_metric": None, "log_history": history}, indent=2))
    return path


def event_files(folder: Path, train: list[float], evaluation: dict[int, float]) -> Path:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for part, series in (("train", dict(enumerate(train))), ("validation", evaluation)):
        with SummaryWriter(folder / "logs" / part) as writer:
            for step, loss in series.items():
                writer.add_scalar("loss", loss, step)
            writer.add_histogram("weights", np.arange(5), 0)
    return folder / "logs"


FORMATS: list[Write] = [wide_csv, long_csv, jsonl, trainer_state, event_files]


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("overfits", [False, True])
def test_loss_rules_judge_every_format_alike(write: Write, overfits: bool, tmp_path: Path) -> None:
    analysis = judge_log(read_log(write(tmp_path, *curves(overfits=overfits))), configure(None, []))
    assert [finding.rule for finding in analysis.findings] == (["Overfit"] if overfits else [])
    decided = {result.rule: result.coverage.decided for result in analysis.results}
    assert decided["LossNotDecreasing"] and not decided["VanishingGradient"]


def test_an_imported_log_is_a_run_like_others(tmp_path: Path) -> None:
    log = wide_csv(tmp_path, *curves(overfits=True))
    assert import_log(log, tmp_path / "run") == STEPS
    trace = Trace(tmp_path / "run")
    assert trace.status() == "finished"
    (finding,) = analyze(trace, configure(None, [])).findings
    assert finding.to_json() == judge_log(read_log(log), configure(None, [])).findings[0].to_json()


def test_values_that_are_not_finite_are_values(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("Step,loss\n0,1.5\n1,nan\n2,Infinity\n3,\n")
    values = [dict(record.scalars) for record in read_log(path)]
    assert values[0] == {"loss": 1.5} and math.isnan(values[1]["loss"]) and values[2] == {"loss": math.inf}
    assert len(values) == 3


@pytest.mark.parametrize(
    "text",
    [
        "step;loss;host\n0;0,5;a\n1;0,25;a\n",
        "step\tloss\n0\t0.5\n1\t0.25\n",
        "\ufeffStep, loss\n0, 0.5\n1, 0.25\n",
        '"Step","loss","loss__MIN","loss__MAX"\n"0","0.5","0.5","0.5"\n"1","0.25","0.25","0.25"\n',
    ],
    ids=["semicolons and decimal commas", "tabs", "spaces and a mark of Excel's", "exported from W&B"],
)
def test_tables_as_spreadsheets_and_trackers_write_them(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text(text)
    assert [record.scalars for record in read_log(log)] == [[("loss", 0.5)], [("loss", 0.25)]]


def test_tensorboards_own_csv_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "val_loss.csv"
    path.write_text("Wall time,Step,Value\n1.7e9,0,2.5\n1.7e9,10,2.0\n")
    assert [(r.step, r.scalars) for r in read_log(path)] == [(0, [("val_loss", 2.5)]), (10, [("val_loss", 2.0)])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "loss,lr\n1,2\n", "has no step; expected one of step"),
        ("a.csv", "step,loss\n0.5,2\n", "the step is '0.5'; expected a whole number"),
        ("a.csv", "step,loss\n", "holds no scalars"),
        ("a.csv", b"\x89PNG\xff\xfe", "not a CSV file"),
        ("a.jsonl", '{"step": 1, "loss": 2}\nnonsense\n{"step": 2, "loss": 2}\n', "line 2: not a JSON object"),
        ("a.json", "[1, 2]", "line 1: not a JSON object"),
        ("events.out.tfevents.1.host", b"not an event file at all", "holds no scalars"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TraceError, match=message) as caught:
        read_log(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_commands(tmp_path: Path) -> None:
    log = wide_csv(tmp_path, *curves(overfits=True))
    done = stepwatch("analyze", "--scalars", log)
    assert done.returncode == 1, done.stderr
    assert "Overfit" in done.stdout and "val_loss" in done.stdout
    content = json.loads(stepwatch("analyze", "--scalars", log, "--json").stdout)
    assert content["run"] == str(log) and [d["cause"] for d in content["diagnoses"]] == ["Overfit"]
    assert stepwatch("import", log, tmp_path / "run").returncode == 0
    assert stepwatch("analyze", tmp_path / "run").returncode == 1
    for arguments, text in (
        (("import", log, tmp_path / "run"), "holds something already"),
        (("analyze",), "got no run"),
        (("analyze", "--scalars", tmp_path / "none.csv"), "no such file"),
    ):
        wrong = stepwatch(*arguments)
        assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and text in wrong.stderr
