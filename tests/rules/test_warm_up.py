"""First steps that are too large for the weights to begin with, and those that do no harm, really trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Status
from stepwatch.rules.replay import analyze

STEPS = 120


def train(run: Path, *, rate: float = 0.04, warm_up: int = 1, width: int = 256, steps: int = STEPS) -> RuleResult:
    torch.manual_seed(0)
    x = torch.randn(1000, 3)
    y = torch.sin(2 * x.sum(1, keepdim=True)) + 1
    model = nn.Sequential(
        *(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU()),
        nn.Linear(width, 1),
    )
    optimizer, loss_fn = torch.optim.Adam(model.parameters(), lr=rate), nn.MSELoss()
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up) * (1 - step / STEPS)
    )
    config = SaveConfig(save_interval=2)
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0):
        for _ in range(steps):
            at = torch.randint(0, 1000, (32,))
            optimizer.zero_grad()
            loss_fn(model(x[at]), y[at]).backward()
            optimizer.step()
            rates.step()
    (result,) = analyze(Trace(run), configure(["MissingWarmUp"])).results
    return result


def last_loss(run: Path) -> float:
    return float(Trace(run).table("scalars", names=["MSELoss_output_0"])["value"].to_numpy()[-20:].mean())


def test_updates_that_tear_the_weights_apart_at_once(tmp_path: Path) -> None:
    result = train(tmp_path / "cold")
    (finding,) = result.findings
    assert finding.value > 0.5
    assert "at its full height" in finding.message
    warm = train(tmp_path / "warm", warm_up=40)
    assert warm.status is Status.NO_ISSUES_FOUND
    assert last_loss(tmp_path / "warm") < last_loss(tmp_path / "cold") / 1.5, "warmed up it would have come further"


@pytest.mark.parametrize(("rate", "width"), [(0.001, 256), (0.02, 32)], ids=["small rate", "comes back at once"])
def test_no_warm_up_where_none_is_missed(tmp_path: Path, rate: float, width: int) -> None:
    assert train(tmp_path / "run", rate=rate, width=width).status is Status.NO_ISSUES_FOUND


def test_a_run_that_has_only_begun_is_not_judged(tmp_path: Path) -> None:
    result = train(tmp_path / "run", steps=15)
    assert result.status is Status.STOPPED
    assert "15 steps with a loss; at least 31" in " ".join(result.coverage.missing)
