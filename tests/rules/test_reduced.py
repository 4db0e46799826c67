"""Runs of which smdebug saved reductions only, judged by the default rules as the runs that have all statistics."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.smdebug.directory import REDUCTION_PREFIX
from stepwatch.probe.store.smdebug.exporting import export_smdebug
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Status
from stepwatch.rules.reduced import statistics_of
from stepwatch.rules.replay import analyze
from tests.rules.sagemaker_runs import train

RULES = ["ExplodingTensor", "VanishingGradient", "PoorWeightInitialization", "LossNotDecreasing"]


def judged(path: Path) -> dict[str, RuleResult]:
    return {result.rule: result for result in analyze(Trace(path), configure(RULES)).results}


def deep() -> nn.Module:
    torch.manual_seed(0)
    layers = [(nn.Linear(6, 6), nn.Sigmoid()) for _ in range(6)]
    return nn.Sequential(*(each for pair in layers for each in pair), nn.Linear(6, 3))


def add_shapes(run: Path, directory: Path) -> None:
    """As smdebug with save_shape."""
    shapes = {name: info.shape for name, info in Trace(run).tensors().items()}
    payload = [{"tensorname": n, "originalname": n, "shape": list(shape)} for n, shape in shapes.items()]
    for path in (directory / "index").rglob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "shape_payload": payload}))


@pytest.mark.parametrize("learning_rate", [0.01, 1e38])
def test_the_same_verdicts(tmp_path: Path, learning_rate: float) -> None:
    run = train(tmp_path / "run", steps=40, lr=learning_rate, model=deep())
    export_smdebug(Trace(run), tmp_path / "theirs")
    add_shapes(run, tmp_path / "theirs")
    (event,) = sorted((tmp_path / "theirs" / "events").rglob("*.tfevents"))[:1]
    assert REDUCTION_PREFIX.encode() in event.read_bytes()
    ours, theirs = judged(run), judged(tmp_path / "theirs")
    assert {rule: result.status for rule, result in theirs.items()} == {
        rule: result.status for rule, result in ours.items()
    }
    assert (ours["ExplodingTensor"].status is Status.ISSUES_FOUND) is (learning_rate > 1)
    for rule, result in ours.items():
        assert [f.first_step for f in theirs[rule].findings] == [f.first_step for f in result.findings]
    assert theirs["VanishingGradient"].coverage.tensors == ours["VanishingGradient"].coverage.tensors > 0


def test_the_row_that_reductions_tell() -> None:
    values = np.array([[1.0, -3.0], [2.0, 0.5]])
    whole = {"min": -3.0, "max": 2.0, "mean": values.mean(), "std": values.std()}
    exact = {"min": -3.0, "max": 2.0, "abs_max": 3.0, "mean": values.mean(), "std": values.std(), "n_nan": 0.0}
    for numel in (4.0, None):
        known = whole if numel is None else {**whole, "numel": numel}
        row = dict(zip(STAT_COLUMNS, statistics_of(known), strict=True))
        assert {name: row[name] for name in exact} == exact
        assert row["l2"] / math.sqrt(row["numel"]) == pytest.approx(np.sqrt((values**2).mean()))
        assert math.isnan(row["l1"]) and math.isnan(row["n_zero"])


@pytest.mark.parametrize(
    "known",
    [
        {"variance": -1.0, "mean": math.nan},
        {"mean": 1e300, "std": 1e300},
        {"min": -math.inf, "max": math.inf},
        {"numel": 0.0},
        {},
    ],
)
def test_odd_reductions_are_no_error(known: dict[str, float]) -> None:
    row = dict(zip(STAT_COLUMNS, statistics_of(known), strict=True))
    assert row["n_nan"] == any(map(math.isnan, known.values()))
    assert row["n_inf"] == any(map(math.isinf, known.values()))


def test_too_few_reductions_are_not_taken_for_health(tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=20)
    export_smdebug(Trace(run), tmp_path / "theirs")
    # Without the smallest value no default rule can judge a tensor.
    for index in (tmp_path / "theirs" / "index").rglob("*.json"):
        index.write_text(index.read_text().replace(f"{REDUCTION_PREFIX}min/", f"{REDUCTION_PREFIX}prod/"))
    verdict = judged(tmp_path / "theirs")["VanishingGradient"]
    assert verdict.status is Status.STOPPED and not verdict.coverage.decided and verdict.coverage.missing
