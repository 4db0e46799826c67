"""Schedules of the learning rate that are wrong, on jobs that really train, and those that look so and are right."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Status
from stepwatch.rules.replay import analyze

STEPS = 600


def train(run: Path, rule: str, schedule: Callable[[int], float], rate: float = 0.1, noise: float = 0.1) -> RuleResult:
    torch.manual_seed(0)
    x = torch.randn(2000, 20)
    y = torch.tanh(x @ torch.randn(20, 1)) + noise * torch.randn(2000, 1)
    model, loss_fn = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1)), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    config = SaveConfig(save_interval=100)
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0):
        for _ in range(STEPS):
            at = torch.randint(0, 2000, (128,))
            optimizer.zero_grad()
            loss_fn(model(x[at]), y[at]).backward()
            optimizer.step()
            rates.step()
    (result,) = analyze(Trace(run), configure([rule])).results
    return result


def cosine(length: int) -> Callable[[int], float]:
    return lambda step: 1e-4 + 0.5 * (1 + math.cos(math.pi * min(step, length) / length))


def test_a_schedule_that_is_over_while_the_loss_still_falls(tmp_path: Path) -> None:
    result = train(tmp_path / "run", "LearningRateDecayedEarly", cosine(120), rate=0.02, noise=0.02)
    (finding,) = result.findings
    assert 90 < finding.first_step < 120
    assert "still falling" in finding.message
    whole = train(tmp_path / "whole", "LearningRateDecayedEarly", cosine(STEPS), rate=0.02, noise=0.02)
    losses = [Trace(tmp_path / run).table("scalars", names=["MSELoss_output_0"])["value"].to_numpy()[-50:].mean()
              for run in ("run", "whole")]  # fmt: skip
    assert losses[1] < 0.8 * losses[0], "as long as the job it would have come further"
    assert whole.status is Status.NO_ISSUES_FOUND


@pytest.mark.parametrize(
    ("schedule", "rate"),
    [
        (cosine(STEPS), 0.3),
        (cosine(300), 0.5),  # over in the middle, when nothing was left to learn
        (lambda step: 0.1 ** (step // 200), 0.3),
        (lambda step: cosine(150)(step % 150), 0.1),  # restarts
        (lambda step: min(1.0, (step + 1) / 400), 0.1),
    ],
    ids=["cosine", "converged", "steps", "restarts", "warm-up"],
)
@pytest.mark.parametrize("rule", ["LearningRateDecayedEarly", "LearningRateGrowing"])
def test_schedules_as_they_should_be_are_no_finding(
    tmp_path: Path, rule: str, schedule: Callable[[int], float], rate: float
) -> None:
    assert train(tmp_path / "run", rule, schedule, rate).status is Status.NO_ISSUES_FOUND


def test_a_rate_that_grows_until_the_loss_rises(tmp_path: Path) -> None:
    result = train(tmp_path / "run", "LearningRateGrowing", lambda step: 1.012**step, rate=0.01)
    (finding,) = result.findings
    assert "still growing" in finding.message
    assert finding.first_step < finding.last_step - 20


def test_a_run_without_an_optimizer_is_not_judged(tmp_path: Path) -> None:
    with Hook(tmp_path / "run", system_interval=0) as hook:
        for step in range(5):
            hook.log("loss", 1 / (step + 1))
    (result,) = analyze(Trace(tmp_path / "run"), configure(["LearningRateGrowing"])).results
    assert result.status is Status.STOPPED
    assert result.coverage.missing == ("no step with a training loss and a learning rate was recorded",)


def test_the_rates_of_all_optimizers_are_recorded(tmp_path: Path) -> None:
    one, other = nn.Linear(2, 1), nn.Linear(2, 1)
    first = torch.optim.SGD(one.parameters(), lr=0.5)
    second = torch.optim.SGD([{"params": [other.weight], "lr": 0.2}, {"params": [other.bias]}], lr=0.3)
    with Hook(tmp_path / "run", model=[one, other], optimizer=[first, second], system_interval=0):
        for _ in range(3):
            for model, optimizer in ((one, first), (other, second)):
                optimizer.zero_grad()
                model(torch.randn(4, 2)).sum().backward()
                optimizer.step()
    rows = Trace(tmp_path / "run").table("scalars").to_pylist()
    rates = {row["name"]: row["value"] for row in rows if row["name"].startswith("learning_rate")}
    assert rates == {
        "learning_rate": 0.5,
        "learning_rate/optimizer_1/group_0": 0.2,
        "learning_rate/optimizer_1/group_1": 0.3,
    }
