"""Parameters that take no part in training, by cause, in real training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Severity, Status
from stepwatch.rules.replay import analyze


class Net(nn.Module):
    """A body, a head and a layer that is not called; what passes between the first two can be changed."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        super().__init__()
        self.body, self.head, self.spare = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 8)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.between(torch.relu(self.body(x))))


def train(
    run: Path,
    model: nn.Module,
    held: Callable[[Net], list[nn.Parameter]] = lambda model: list(model.parameters()),
    around: Callable[[int, Net], None] = lambda step, model: None,
    steps: int = 120,
) -> dict[str, RuleResult]:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(held(model), lr=1e-3)
    with Hook(run, model=model, optimizer=optimizer, save_config=SaveConfig(save_interval=5), system_interval=0):
        for step in range(steps):
            around(step, model)
            x = torch.randn(16, 6)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
            optimizer.step()
    return {result.rule: result for result in analyze(Trace(run), configure(["NoGradient", "UnchangedTensor"])).results}


def test_a_part_that_is_cut_off_from_the_loss(tmp_path: Path) -> None:
    results = train(tmp_path / "run", Net(torch.Tensor.detach))
    (finding,) = results["NoGradient"].findings
    assert finding.severity is Severity.WARNING
    assert set(finding.tensors) == {"Net_body.weight", "Net_body.bias"}
    assert "cut off" in finding.message and finding.last_step == 50
    assert "2 of modules that do not run" in results["NoGradient"].coverage.closest
    assert results["UnchangedTensor"].status is Status.NO_ISSUES_FOUND, "it has no gradient that would be wasted"


def test_a_gradient_of_nothing_but_zeros(tmp_path: Path) -> None:
    (finding,) = train(tmp_path / "run", Net(lambda x: 0 * x))["NoGradient"].findings
    assert finding.tensors == ("Net_body.weight", "Net_head.weight")
    assert "nothing but zeros" in finding.message


def test_a_part_that_no_optimizer_holds_is_said_to_be_so(tmp_path: Path) -> None:
    results = train(tmp_path / "run", Net(), held=lambda model: list(model.head.parameters()))
    (finding,) = results["UnchangedTensor"].findings
    assert finding.tensors == ("Net_body.weight",)
    assert finding.message.endswith("although gradients reach it: no optimizer holds it")
    assert results["NoGradient"].findings == []


@pytest.mark.parametrize("trained_before", [False, True])
def test_a_part_that_is_frozen_on_purpose_is_no_finding(tmp_path: Path, trained_before: bool) -> None:
    model = Net()
    if trained_before:  # what is frozen keeps the gradient that it had
        model(torch.randn(4, 6)).sum().backward()
    model.body.requires_grad_(False)
    results = train(tmp_path / "run", model, held=lambda net: list(net.head.parameters()))
    assert {result.status for result in results.values()} == {Status.NO_ISSUES_FOUND}
    assert "2 frozen, 2 of modules that do not run" in results["NoGradient"].coverage.closest


@pytest.mark.parametrize("thaws", [40, 95], ids=["soon", "late"])
def test_a_part_that_is_thawed_on_the_way_is_no_finding(tmp_path: Path, thaws: int) -> None:
    model = Net()
    model.body.requires_grad_(False)
    results = train(
        tmp_path / "run", model, around=lambda step, model: model.body.requires_grad_(step >= thaws) and None, steps=200
    )
    assert {result.status for result in results.values()} == {Status.NO_ISSUES_FOUND}


def test_models_that_take_turns_have_their_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = {"G": nn.Linear(4, 6), "D": nn.Linear(6, 1)}
    d, g = (torch.optim.Adam(models[name].parameters(), lr=1e-3) for name in ("D", "G"))
    config = SaveConfig(save_interval=5)
    with Hook(tmp_path / "run", model=models, optimizer=[d, g], save_config=config, system_interval=0):
        for _ in range(120):
            fake = models["G"](torch.randn(8, 4))
            d.zero_grad()
            (models["D"](fake.detach()).mean() - models["D"](torch.randn(8, 6)).mean()).backward()
            d.step()
            g.zero_grad()
            (-models["D"](fake).mean()).backward()
            g.step()
    (result,) = analyze(Trace(tmp_path / "run"), configure(["NoGradient"])).results
    assert result.status is Status.NO_ISSUES_FOUND and result.coverage.tensors == 4


def test_only_what_takes_no_part_is_recorded_and_once(tmp_path: Path) -> None:
    train(tmp_path / "run", Net())
    rows = [row for row in Trace(tmp_path / "run").table("derived").to_pylist() if row["quantity"] == "role"]
    assert {(row["name"], tuple(row["value"])) for row in rows} == {
        ("Net_spare.weight", (1, 1, 0, 0)),
        ("Net_spare.bias", (1, 1, 0, 0)),
    }
    assert len(rows) == 2


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    result = train(tmp_path / "run", Net(), steps=20)["NoGradient"]
    assert result.status is Status.STOPPED and "4 saved steps over 15 steps" in result.coverage.missing[0]
