"""Spikes of the training loss: really trained through, and made up where they must be exact."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stepwatch.probe import Hook
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import Finding, RuleResult, Severity, Status
from stepwatch.rules.recommended.spikes import LossSpike
from stepwatch.rules.replay import analyze
from stepwatch.rules.testing import SyntheticRun

STEPS = 800


def noisy(seed: int = 0, spread: float = 0.1) -> np.ndarray:
    """A loss that falls from 2.3 to 0.3, with noise in proportion to it."""
    noise = np.random.default_rng(seed).normal(0, spread, STEPS)
    return (0.3 + 2 * np.exp(-np.arange(STEPS) / 80)) * np.exp(noise)


def spiked(*places: int, height: float = 3.0, decay: float = 10.0) -> np.ndarray:
    loss = noisy()
    for place in places:
        loss[place:] += height * np.exp(-np.arange(STEPS - place) / decay)
    return loss


def found(loss: np.ndarray, rate: np.ndarray | float = 0.1) -> list[Finding]:
    return SyntheticRun().loss(loss).learning_rate(rate).judge(LossSpike()).findings


def train(run: Path, spoiled: set[int], steps: int = 450) -> RuleResult:
    torch.manual_seed(0)
    x = torch.randn(2000, 8)
    y = x[:, :4].argmax(1)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, system_interval=0):
        for step in range(steps):
            at = torch.randint(0, len(y), (64,))
            optimizer.zero_grad()
            batch = x[at] + 10 * torch.randn(64, 8) if step in spoiled else x[at]
            loss_fn(model(batch), y[at]).backward()
            optimizer.step()
    (result,) = analyze(Trace(run), configure(["LossSpike"])).results
    return result


def test_batches_of_garbage_that_the_model_recovers_from_each_time(tmp_path: Path) -> None:
    result = train(tmp_path / "run", {200, 280, 360})
    (finding,) = result.findings
    assert finding.severity is Severity.WARNING
    assert abs(finding.first_step - 200) <= 4 and abs(finding.last_step - 360) <= 15
    spikes = finding.evidence["spikes"]
    assert isinstance(spikes, list) and [round(spike["first_step"], -1) for spike in spikes] == [200, 280, 360]


@pytest.mark.parametrize("spoiled", [set(), {280}], ids=["none", "one"])
def test_a_run_without_spikes_and_one_that_recovers_are_quiet(tmp_path: Path, spoiled: set[int]) -> None:
    result = train(tmp_path / "run", spoiled)
    assert result.status is Status.NO_ISSUES_FOUND
    assert ("1 so far, the last at step 280, recovered" in result.coverage.closest) is bool(spoiled)


def test_a_jump_that_lasts() -> None:
    loss = noisy()
    loss[400:] += 1.5
    (finding,) = found(loss)
    assert finding.first_step == 400 and finding.last_step <= 620
    assert finding.value == pytest.approx(1.8, abs=0.2)


@pytest.mark.parametrize("decay", [10.0, 60.0], ids=["at once", "slowly"])
def test_one_spike_that_recovers_is_no_finding(decay: float) -> None:
    assert found(spiked(400, decay=decay)) == []


def test_spikes_at_regular_steps_are_said_to_be() -> None:
    (finding,) = found(spiked(300, 450, 600))
    assert "steps 300, 450, 600 (every 150)" in finding.message


def test_spikes_far_apart_are_no_finding() -> None:
    assert SyntheticRun().loss(spiked(300, 450, 600)).judge(LossSpike(span=250)).findings == []


def test_jumps_after_a_schedule_raised_the_rate_again_are_its_own() -> None:
    rate = 0.05 * (1 + np.cos(math.pi * (np.arange(STEPS) % 150) / 150))
    assert found(spiked(300, 450, 600), rate) == []


def test_hard_batches_are_no_spikes() -> None:
    loss = noisy()
    loss[300:700:40] += 5
    assert found(loss) == []


def test_what_diverges_is_left_to_the_rule_about_it() -> None:
    loss = noisy()
    loss[400:] = 50.0
    assert found(loss) == []


@pytest.mark.parametrize("spread", [0.05, 0.5, 2.0])
def test_noise_of_any_size_is_no_finding(spread: float) -> None:
    assert [seed for seed in range(10) if found(noisy(seed, spread))] == []


def test_what_is_missing_is_said() -> None:
    coverage = SyntheticRun().loss([1.0] * 50).judge(LossSpike()).coverage
    assert not coverage.decided and "50 steps with a loss" in coverage.missing[0]


@pytest.mark.parametrize(
    ("parameters", "said"), [({"patience": 20}, "patience is 20; expected 50"), ({"factor": 0.0}, "factor is 0.0")]
)
def test_wrong_parameters(parameters: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LossSpike(**parameters)
