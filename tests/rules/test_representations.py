"""Outputs, activations and attention that go wrong on jobs that really train, and jobs in which they are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Severity, Status
from stepwatch.rules.replay import analyze


def verdict(run: Path, rule: str) -> RuleResult:
    (result,) = analyze(Trace(run), configure([rule])).results
    return result


def train(
    run: Path,
    model: nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    *,
    rate: float,
    steps: int,
    **options: Any,
) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    config = SaveConfig(save_interval=4)
    with Hook(run, model=model, optimizer=optimizer, save_config=config, system_interval=0, **options):
        for _ in range(steps):
            optimizer.zero_grad()
            loss(torch.randn(32, 8)).backward()
            optimizer.step()


# -- outputs ---------------------------------------------------------------------------------------------


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))


def pull_together(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Two views of a sample shall have one embedding, and nothing keeps samples apart."""
    return lambda x: functional.mse_loss(model(x), model(x + 0.5 * torch.randn_like(x)))


def contrast(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    def loss(x: torch.Tensor) -> torch.Tensor:
        one, other = (functional.normalize(model(view), dim=1) for view in (x, x + 0.5 * torch.randn_like(x)))
        return functional.cross_entropy(one @ other.T / 0.2, torch.arange(len(x)))

    return loss


def test_embeddings_that_become_one_vector(tmp_path: Path) -> None:
    model = encoder()
    train(tmp_path / "run", model, pull_together(model), rate=0.02, steps=600)
    result = verdict(tmp_path / "run", "CollapsedOutput")
    (finding,) = result.findings
    assert finding.severity is Severity.WARNING
    assert finding.tensors == ("Sequential_output_0",)
    with torch.no_grad():
        embeddings = functional.normalize(model(torch.randn(100, 8)), dim=1)
    assert (embeddings @ embeddings.T).min() > 0.99


def test_embeddings_that_are_kept_apart_are_no_finding(tmp_path: Path) -> None:
    model = encoder()
    train(tmp_path / "run", model, contrast(model), rate=0.02, steps=300)
    assert verdict(tmp_path / "run", "CollapsedOutput").status is Status.NO_ISSUES_FOUND


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_answers_that_are_alike_because_targets_are_are_no_finding(tmp_path: Path, offset: float) -> None:
    model = encoder()
    train(
        tmp_path / "run",
        model,
        lambda x: functional.mse_loss(model(x), x[:, :1].expand(-1, 16) + offset),
        rate=0.02,
        steps=300,
    )
    assert verdict(tmp_path / "run", "CollapsedOutput").status is Status.NO_ISSUES_FOUND


# -- activations -----------------------------------------------------------------------------------------


def test_activations_that_nothing_bounds(tmp_path: Path) -> None:
    model = nn.Sequential(encoder(), nn.ReLU(), nn.Linear(16, 16))
    train(tmp_path / "run", model, lambda x: -model(x)[:, 0].mean(), rate=0.2, steps=300)
    (finding,) = verdict(tmp_path / "run", "ExplodingActivation").findings
    assert finding.tensors == ("1_output_0",)
    assert finding.value > 1000


def zero_start() -> nn.Module:
    model = encoder()
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[0].bias, 1e-6)
    return model


@pytest.mark.parametrize("make", [encoder, zero_start])
def test_activations_that_grow_into_their_place_are_no_finding(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    model = make()
    train(tmp_path / "run", model, lambda x: functional.mse_loss(model(x)[:, 0], 50 * x[:, 1]), rate=0.01, steps=200)
    assert verdict(tmp_path / "run", "ExplodingActivation").status is Status.NO_ISSUES_FOUND


# -- attention -------------------------------------------------------------------------------------------


class Attending(nn.Module):
    """Looks up the value that stands where the query's key does."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.attention = nn.MultiheadAttention(16, 1, batch_first=True)
        self.head = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers, _ = self.attention(self.scale * x, x, x, need_weights=True)
        return self.head(answers[:, 0])


def look_up(run: Path, scale: Callable[[int], float], steps: int) -> RuleResult:
    torch.manual_seed(0)
    model = Attending()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    collections = ["losses", "multiheadattention_output"]
    config = SaveConfig(save_interval=4)
    with Hook(
        run,
        model=model,
        optimizer=optimizer,
        include_collections=collections,
        save_config=config,
        system_interval=0,
    ):
        for step in range(steps):
            model.scale = scale(step)
            keys, values = torch.randint(8, (32, 6)), torch.randint(8, (32, 6))
            keys[:, 0] = keys[torch.arange(32), torch.randint(1, 6, (32,))]
            x = torch.cat([functional.one_hot(keys, 8), functional.one_hot(values, 8)], -1).float()
            optimizer.zero_grad()
            functional.cross_entropy(model(x), torch.randint(8, (32,))).backward()
            optimizer.step()
    return verdict(run, "AttentionCollapse")


def test_attention_that_went_to_single_positions(tmp_path: Path) -> None:
    result = look_up(tmp_path / "run", lambda step: 1.0 if step < 100 else 5000.0, 220)
    (finding,) = result.findings
    assert finding.first_step == 100
    assert finding.value > 0.9


def test_attention_that_stays_broad_is_no_finding(tmp_path: Path) -> None:
    result = look_up(tmp_path / "run", lambda step: 1.0, 120)
    assert result.status is Status.NO_ISSUES_FOUND
    assert result.coverage.tensors == 1


def test_sharp_attention_of_a_model_that_learns_is_no_finding(tmp_path: Path) -> None:
    """Attention is saved by the script itself."""
    torch.manual_seed(0)
    query, embed = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.randn(6, 8))
    optimizer = torch.optim.Adam([query, embed], lr=0.05)
    config = SaveConfig(save_interval=4)
    with Hook(tmp_path / "run", optimizer=optimizer, save_config=config, system_interval=0) as hook:
        for _ in range(400):
            weights = (query @ embed.T).softmax(-1).expand(16, 6)
            optimizer.zero_grad()
            hook.save_tensor("attention", weights)
            (1 - weights[:, 2]).mean().backward()
            optimizer.step()
    result = verdict(tmp_path / "run", "AttentionCollapse")
    assert result.status is Status.NO_ISSUES_FOUND
    assert result.coverage.tensors == 1
    last = Trace(tmp_path / "run").table("stats", names=["attention"]).to_pylist()[-1]
    assert last["l2"] ** 2 / last["l1"] > 0.95
