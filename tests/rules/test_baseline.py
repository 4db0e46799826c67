"""Runs held against a baseline that really trained: worse, as good with other seeds, and without a baseline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.labels import mark_baseline
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.errors import RuleError
from stepwatch.rules.finding import RuleResult, Severity, Status
from stepwatch.rules.replay import analyze

STEPS = 500


def train(run: Path, *, rate: float = 0.05, seed: int = 0, steps: int = STEPS, live: bool = False) -> Hook:
    torch.manual_seed(0)
    x = torch.randn(1000, 10)
    y = torch.tanh(x @ torch.randn(10, 1)) + 0.2 * torch.randn(1000, 1)
    torch.manual_seed(seed)
    model, loss_fn = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1)), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    config, rules = SaveConfig(save_interval=250), ["WorseThanBaseline"] if live else None
    with Hook(
        run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0, rules=rules
    ) as hook:
        for _ in range(steps):
            at = torch.randint(0, 1000, (32,))
            optimizer.zero_grad()
            loss_fn(model(x[at]), y[at]).backward()
            optimizer.step()
    return hook


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "good")
    mark_baseline(folder / "good")
    train(folder / "slow", rate=0.002, seed=1, live=True)
    train(folder / "other-seed", seed=2)
    train(folder / "short", seed=3, steps=120)
    return folder


def judged(run: Path, **parameters: str) -> RuleResult:
    (spec,) = configure(["WorseThanBaseline"])
    for name, value in parameters.items():
        spec = spec.with_parameter(name, value)
    (result,) = analyze(Trace(run), [spec]).results
    return result


def test_a_run_that_falls_behind_the_marked_baseline(runs: Path) -> None:
    result = judged(runs / "slow")
    (finding,) = result.findings
    assert finding.severity is Severity.WARNING
    assert finding.value > finding.threshold
    assert str(runs / "good") in finding.message


def test_it_is_found_in_the_training_process_as_well(runs: Path) -> None:
    (finding,) = judged(runs / "slow").findings
    recorded = Trace(runs / "slow").findings()
    assert [(row["rule"], row["last_step"]) for row in recorded] == [(finding.rule, finding.last_step)]


@pytest.mark.parametrize("run", ["other-seed", "good"])
def test_as_good_as_the_baseline_is_no_finding(runs: Path, run: str) -> None:
    named = {"baseline": str(runs / "good")} if run == "good" else {}
    assert judged(runs / run, **named).status is Status.NO_ISSUES_FOUND


def test_what_is_missing_is_said(runs: Path, tmp_path: Path) -> None:
    short = judged(runs / "short")
    assert short.status is Status.STOPPED and "120 steps with a loss" in short.coverage.missing[0]
    assert "mark one" in judged(runs / "good").coverage.missing[0]  # it is the baseline
    with pytest.raises(RuleError, match=r"baseline: .*nowhere"):
        judged(runs / "slow", baseline=str(tmp_path / "nowhere"))
