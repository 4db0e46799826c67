"""Sigmoid and tanh networks, really trained: saturated ones, and healthy ones that look a little like them."""

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


def train(run: Path, model: nn.Module, *, rate: float = 0.1, scale: float = 1.0, steps: int = 150) -> RuleResult:
    generator = torch.Generator().manual_seed(0)
    inputs = scale * torch.randn(512, 20, generator=generator)
    labels = (inputs[:, 0] * inputs[:, 1] > 0).float().unsqueeze(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    loss_fn = nn.BCELoss()
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=SaveConfig(save_interval=2)):
        for _ in range(steps):
            at = torch.randint(0, 512, (64,), generator=generator)
            optimizer.zero_grad()
            loss_fn(model(inputs[at]), labels[at]).backward()
            optimizer.step()
    (result,) = analyze(Trace(run), configure(["SaturatedActivation"])).results
    return result


def network(activation: type[nn.Module], spread: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for size in (20, 64, 64):
        layers += [nn.Linear(size, 64), activation()]
    model = nn.Sequential(*layers, nn.Linear(64, 1), nn.Sigmoid())
    if spread:
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=spread)
    return model


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_weights_that_began_too_large_saturate_the_layers_they_feed(tmp_path: Path, activation) -> None:
    result = train(tmp_path / "run", network(activation, spread=20.0))
    assert result.status is Status.ISSUES_FOUND
    finding = result.findings[0]
    assert set(finding.tensors) <= {"1_output_0", "3_output_0", "5_output_0"}, "the output layer may be sure of itself"
    assert finding.value < finding.threshold
    assert finding.first_step == 0


def test_inputs_that_nobody_normalised_saturate_the_first_layer(tmp_path: Path) -> None:
    result = train(tmp_path / "run", network(nn.Tanh), scale=1000.0, rate=0.001)
    assert result.status is Status.ISSUES_FOUND
    assert "1_output_0" in result.findings[0].tensors


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_a_network_that_learns_is_no_finding_though_its_output_is_sure(tmp_path: Path, activation) -> None:
    result = train(tmp_path / "run", network(activation), steps=400)
    assert result.status is Status.NO_ISSUES_FOUND
    assert result.coverage.decided
