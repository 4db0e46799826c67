"""Batches that are far too large or small for the noise of their gradient, and those between, really trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Severity, Status
from stepwatch.rules.replay import analyze


def train(
    run: Path, size: int, noise: float, *, rate: float = 1e-3, inputs: int = 20, repeat: bool = False
) -> RuleResult:
    torch.manual_seed(0)
    truth = torch.randn(inputs, 1)
    model, loss_fn = nn.Linear(inputs, 1), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    config = SaveConfig(save_interval=2)
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0):
        x = torch.randn(size, inputs)
        for _ in range(220):
            x = x if repeat else torch.randn(size, inputs)
            optimizer.zero_grad()
            loss_fn(model(x), x @ truth + noise * torch.randn(size, 1)).backward()
            optimizer.step()
    spec = configure(["GradientNoiseScale"])[0].with_parameter("pairs", 25).with_parameter("small", 20.0)
    spec = spec.with_parameter("span", 100)
    (result,) = analyze(Trace(run), [spec]).results
    return result


def test_a_batch_in_which_most_samples_say_the_same(tmp_path: Path) -> None:
    (finding,) = train(tmp_path / "run", 1024, 0.1).findings
    assert finding.severity is Severity.INFO
    assert finding.value > 20
    assert "times as large as the noise" in finding.message


def test_a_batch_of_hardly_anything_but_noise(tmp_path: Path) -> None:
    (finding,) = train(tmp_path / "run", 8, 0.0, inputs=1000).findings
    assert finding.value > 20
    assert "hardly agree" in finding.message


def test_the_estimate_scales_with_the_batch(tmp_path: Path) -> None:
    def ratio(size: int) -> float:
        result = train(tmp_path / str(size), size, 10.0, rate=1e-5)
        assert result.status is Status.NO_ISSUES_FOUND
        return float(result.coverage.closest.split()[2])

    assert ratio(16) / ratio(64) == pytest.approx(4, rel=0.5)


def test_the_same_data_each_time_is_not_judged(tmp_path: Path) -> None:
    result = train(tmp_path / "run", 256, 0.0, repeat=True)
    assert result.status is Status.STOPPED
    assert "same data" in result.coverage.missing[0]
