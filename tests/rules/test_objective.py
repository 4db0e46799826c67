"""Objectives without a minimum and labels without a meaning, really trained; and healthy runs beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Status
from stepwatch.rules.replay import analyze


class OwnLoss(nn.Module):
    def __init__(self, compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.compute(output, labels)


def train(
    run: Path,
    rule: str,
    loss_fn: nn.Module,
    *,
    steps: int = 400,
    shuffled: bool = False,
    rare: bool = False,
    outputs: int = 3,
) -> RuleResult:
    torch.manual_seed(0)
    count = 20_000 if shuffled else 600  # too many to learn by heart
    x = torch.randn(count, 6)
    y = (x[:, 0] > 1.2).long() if rare else x[:, :3].argmax(1)
    if shuffled:
        y = y[torch.randperm(count)]
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, outputs))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    config = SaveConfig(save_interval=4)
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0):
        for _ in range(steps):
            at = torch.randint(0, count, (32,))
            optimizer.zero_grad()
            loss_fn(model(x[at]), y[at]).backward()
            optimizer.step()
    (result,) = analyze(Trace(run), configure([rule])).results
    return result


def likelihood(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    mean, scale = output[:, 0], functional.softplus(output[:, 1]) + 1e-3
    return -torch.distributions.Normal(mean, scale).log_prob(labels.float() / 100).mean()


def test_a_loss_with_the_wrong_sign_has_no_bound(tmp_path: Path) -> None:
    result = train(tmp_path / "run", "UnboundedLoss", OwnLoss(lambda o, y: -functional.cross_entropy(o, y)))
    assert result.status is Status.ISSUES_FOUND
    (finding,) = result.findings
    assert finding.value < finding.threshold < 0


def test_a_likelihood_that_goes_below_zero_is_no_finding(tmp_path: Path) -> None:
    result = train(tmp_path / "run", "UnboundedLoss", OwnLoss(likelihood), outputs=2)
    assert result.status is Status.NO_ISSUES_FOUND
    losses = Trace(tmp_path / "run").table("scalars", names=["OwnLoss_output_0"])["value"].to_pylist()
    assert losses[-1] < 0


@pytest.mark.parametrize("rare", [False, True])
def test_labels_that_do_not_belong_to_the_inputs_are_said_at_the_end(tmp_path: Path, rare: bool) -> None:
    rule = "NoBetterThanGuessing"
    result = train(tmp_path / "run", rule, nn.CrossEntropyLoss(), shuffled=True, rare=rare, outputs=2 if rare else 3)
    assert result.status is Status.ISSUES_FOUND
    (finding,) = result.findings
    assert finding.value == pytest.approx(1 / (2 if rare else 3), abs=0.05)
    assert "no better than guessing" in finding.message


@pytest.mark.parametrize(
    ("loss_fn", "rare"),
    [
        (nn.CrossEntropyLoss(), False),
        (nn.CrossEntropyLoss(label_smoothing=0.3), False),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 8.0])), True),
        (nn.CrossEntropyLoss(), True),
    ],
)
def test_what_is_learnt_is_no_finding(tmp_path: Path, loss_fn: nn.Module, rare: bool) -> None:
    result = train(tmp_path / "run", "NoBetterThanGuessing", loss_fn, rare=rare, outputs=2 if rare else 3)
    assert result.status is Status.NO_ISSUES_FOUND
    assert result.coverage.decided


def test_a_run_that_has_only_begun_is_not_judged(tmp_path: Path) -> None:
    result = train(tmp_path / "run", "NoBetterThanGuessing", nn.CrossEntropyLoss(), steps=100, shuffled=True)
    assert result.status is Status.STOPPED
    assert not result.coverage.decided


def test_the_loss_of_a_policy_gradient_is_no_measure_of_progress(tmp_path: Path) -> None:
    torch.manual_seed(3)
    policy, best = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 5)), torch.randn(4, 5)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    with Hook(tmp_path / "run", model=policy, optimizer=optimizer, system_interval=0):
        for _ in range(400):
            optimizer.zero_grad()
            state = torch.randn(32, 4)
            choice = torch.distributions.Categorical(logits=policy(state))
            action = choice.sample()
            reward = (state @ best).gather(1, action[:, None])[:, 0]
            (-(choice.log_prob(action) * reward).mean()).backward()
            optimizer.step()
    rules = configure(["LossNotDecreasing", "StalledLoss", "UnboundedLoss"])
    for result in analyze(Trace(tmp_path / "run"), rules).results:
        assert result.status is Status.STOPPED
        assert "both signs" in " ".join(result.coverage.missing)


def test_the_surrogate_of_a_clipped_policy_climbs_while_the_policy_gets_better(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy, best = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 4)), torch.randn(5, 4)
    optimizer, rewards = torch.optim.Adam(policy.parameters(), lr=3e-3), []
    with Hook(tmp_path / "run", model=policy, optimizer=optimizer, system_interval=0):
        for _ in range(100):
            state = torch.randn(128, 5)
            with torch.no_grad():
                old = torch.distributions.Categorical(logits=policy(state))
                action = old.sample()
                reward = (state @ best).gather(1, action[:, None])[:, 0]
                gain, before = (reward - reward.mean()) / reward.std(), old.log_prob(action)
            rewards.append(float(reward.mean()))
            for _ in range(4):
                now = torch.distributions.Categorical(logits=policy(state))
                ratio = (now.log_prob(action) - before).exp()
                optimizer.zero_grad()
                surrogate = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
                (-surrogate - 0.01 * now.entropy().mean()).backward()
                optimizer.step()
    assert rewards[-1] > rewards[0] + 0.5
    (result,) = analyze(Trace(tmp_path / "run"), configure(["LossNotDecreasing"])).results
    assert result.status is Status.STOPPED
    assert "no measure of progress" in " ".join(result.coverage.missing)
