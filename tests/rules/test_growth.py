"""Weights that grow for nothing, and weights that grow as healthy ones do, on jobs that really train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Status
from stepwatch.rules.replay import analyze

STEPS = 600


def train(run: Path, make: Callable[[], nn.Module], grow: float = 0.0, rate: float = 0.1) -> RuleResult:
    torch.manual_seed(0)
    x = torch.randn(2000, 10)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * torch.randn(2000) > 0).long()
    model, loss_fn = make(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    config = SaveConfig(save_interval=10)
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0):
        for _ in range(STEPS):
            at = torch.randint(0, 2000, (64,))
            optimizer.zero_grad()
            loss_fn(model(x[at]), y[at]).backward()
            optimizer.step()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 + grow)  # weight decay with the wrong sign
    (result,) = analyze(Trace(run), configure(["WeightNormGrowth"])).results
    return result


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))


def test_weight_decay_with_the_wrong_sign(tmp_path: Path) -> None:
    result = train(tmp_path / "run", normalised, grow=0.003)
    (finding,) = result.findings
    assert finding.value > 1.5
    assert finding.tensors[0].endswith("weight")
    assert "nothing holds the weights" in finding.message


def test_weights_that_grow_while_they_learn_are_no_finding(tmp_path: Path) -> None:
    for name, make, rate in (("plain", plain, 0.3), ("normalised", normalised, 2.0)):
        result = train(tmp_path / name, make, rate=rate)
        norms = Trace(tmp_path / name).table("stats", names=["Sequential_0.weight"])["l2"].to_pylist()
        assert norms[-1] > 1.2 * norms[0]
        assert result.status is Status.NO_ISSUES_FOUND and result.coverage.decided
    begun = configure(["WeightNormGrowth"])[0].with_parameter("end_step", 200)
    (short,) = analyze(Trace(tmp_path / "plain"), [begun]).results
    assert short.status is Status.STOPPED
    assert "200 steps with a loss; at least 400" in " ".join(short.coverage.missing)
