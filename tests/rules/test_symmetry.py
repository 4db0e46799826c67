"""Units that training cannot tell apart, and units that only begin alike, on jobs that really train."""

from __future__ import annotations

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


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


@torch.no_grad()
def widened() -> nn.Sequential:
    """Every unit of the first layer twice, with half of its outgoing weight each."""
    model = network()
    for tensor in (model[0].weight, model[0].bias):
        tensor[8:] = tensor[:8]
    model[2].weight[:, :8] /= 2
    model[2].weight[:, 8:] = model[2].weight[:, :8]
    return model


@torch.no_grad()
def equal_incoming() -> nn.Sequential:
    """Equal at first, but each unit speaks to others: the first update parts them."""
    model = network()
    model[0].weight[:] = model[0].weight[:1]
    model[0].bias.fill_(0.1)
    return model


@torch.no_grad()
def zero_head() -> nn.Sequential:
    model = network()
    model[4].weight.zero_()
    model[4].bias.zero_()
    return model


def without_biases() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.Linear(16, 3, bias=False)
    )


def train(run: Path, model: nn.Module, steps: int = 100) -> RuleResult:
    x = torch.randn(500, 8)
    y = x[:, :3].argmax(1)
    optimizer, loss_fn = torch.optim.Adam(model.parameters(), lr=5e-3), nn.CrossEntropyLoss()
    config = SaveConfig(save_interval=5)
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0):
        for _ in range(steps):
            at = torch.randint(0, 500, (32,))
            optimizer.zero_grad()
            loss_fn(model(x[at]), y[at]).backward()
            optimizer.step()
    assert Trace(run).counters == {}, Trace(run).notes
    (result,) = analyze(Trace(run), configure(["SymmetricUnits"])).results
    return result


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_layer_that_was_made_wider_by_copying_its_units(tmp_path: Path) -> None:
    model = widened()
    (finding,) = train(tmp_path / "run", model).findings
    assert finding.tensors == ("Sequential_0.weight",)
    assert finding.value == 1.0 and finding.first_step == 0
    assert torch.allclose(model[0].weight[:8], model[0].weight[8:], atol=1e-5)


@pytest.mark.parametrize("make", [network, equal_incoming, zero_head, without_biases])
def test_units_that_part_are_no_finding(tmp_path: Path, make: Callable[[], nn.Sequential]) -> None:
    result = train(tmp_path / "run", make())
    assert result.status is Status.NO_ISSUES_FOUND
    assert result.coverage.decided and result.coverage.tensors == 3


def test_a_run_that_has_only_begun_is_not_judged(tmp_path: Path) -> None:
    result = train(tmp_path / "run", widened(), steps=12)
    assert result.status is Status.STOPPED
    assert "units were compared 2 times over 5 steps" in result.coverage.missing[0]
