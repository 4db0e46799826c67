"""How far updates move weights: measured in real training with several optimizers and precisions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Severity, Status
from stepwatch.rules.replay import analyze

Maker = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(lr: float, **options: float) -> Maker:
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr, **options)


def adam(lr: float) -> Maker:
    return lambda model: torch.optim.Adam(model.parameters(), lr=lr)


def train(
    run: Path,
    make: Maker,
    *,
    dtype: torch.dtype = torch.float32,
    steps: int = 200,
    rate: Callable[[int], float] = lambda step: 1.0,
    see: Callable[[nn.Module, bool], None] = lambda model, after: None,
) -> dict[str, RuleResult]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).to(dtype)
    optimizer = make(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    with Hook(run, model=model, optimizer=optimizer, save_config=SaveConfig(save_interval=5), system_interval=0):
        for _ in range(steps):
            x = torch.randn(32, 6)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.to(dtype)).float(), x[:, :3].argmax(1)).backward()
            see(model, False)
            optimizer.step()
            see(model, True)
            schedule.step()
    found = analyze(Trace(run), configure(["UpdateTooLarge", "UpdateTooSmall"])).results
    return {result.rule: result for result in found}


def measured(run: Path) -> dict[tuple[int, str], list[float]]:
    rows = Trace(run).table("derived").to_pylist()
    return {(row["step"], row["name"]): row["value"] for row in rows if row["quantity"] == "update"}


@pytest.mark.parametrize("make", [sgd(0.1, momentum=0.9), adam(1e-2)], ids=["sgd", "adam"])
def test_what_is_measured_is_the_change_of_the_weights(tmp_path: Path, make: Maker) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def see(model: nn.Module, after: bool) -> None:
        weight = model[0].weight.detach().double().numpy().copy()  # type: ignore[index,union-attr,operator]
        if not after:
            seen.append((weight, weight))
        else:
            seen[-1] = seen[-1][0], weight

    train(tmp_path / "run", make, steps=45, see=see)
    found = measured(tmp_path / "run")
    assert {step for step, _ in found} == {0, 20, 40}
    assert {name for _, name in found} == {"Sequential_0.weight", "Sequential_2.weight", "Sequential_4.weight"}
    for step in (0, 20, 40):
        before, after = seen[step]
        expected = [np.linalg.norm(after - before), np.linalg.norm(before)]
        assert found[step, "Sequential_0.weight"][:2] == pytest.approx(expected, rel=1e-5)
        assert found[step, "Sequential_0.weight"][2] <= before.size


@pytest.mark.parametrize("make", [sgd(0.1, momentum=0.9), adam(1e-2), adam(1e-5)], ids=["sgd", "adam", "slow adam"])
def test_healthy_updates_are_no_finding(tmp_path: Path, make: Maker) -> None:
    results = train(tmp_path / "run", make)
    assert {result.status for result in results.values()} == {Status.NO_ISSUES_FOUND}
    assert max(result.coverage.margin or 0 for result in results.values()) < 0.5


def test_a_rate_of_the_size_of_the_weights(tmp_path: Path) -> None:
    (finding,) = train(tmp_path / "run", lambda model: torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=1.5))[
        "UpdateTooLarge"
    ].findings
    assert finding.severity is Severity.WARNING
    assert finding.value > 0.3 and finding.last_step <= 100


@pytest.mark.parametrize(
    ("make", "dtype"), [(adam(2e-6), torch.bfloat16), (sgd(1e-9), torch.float32)], ids=["bfloat16", "rate far too low"]
)
def test_updates_that_are_lost_in_rounding(tmp_path: Path, make: Maker, dtype: torch.dtype) -> None:
    (finding,) = train(tmp_path / "run", make, dtype=dtype)["UpdateTooSmall"].findings
    assert finding.severity is Severity.WARNING
    assert finding.value > 0.75 and "lost in rounding" in finding.message


def test_bfloat16_at_a_rate_that_it_holds_is_no_finding(tmp_path: Path) -> None:
    assert train(tmp_path / "run", adam(3e-3), dtype=torch.bfloat16)["UpdateTooSmall"].findings == []


def test_the_end_of_a_schedule_is_no_finding(tmp_path: Path) -> None:
    results = train(tmp_path / "run", sgd(0.1), rate=lambda step: 1.0 if step < 50 else 1e-9, steps=300)
    assert results["UpdateTooSmall"].findings == []


def test_a_rate_of_zero_is_left_to_the_rule_about_it(tmp_path: Path) -> None:
    assert train(tmp_path / "run", sgd(0.0))["UpdateTooSmall"].findings == []


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    results = train(tmp_path / "run", adam(1e-3), steps=10)
    assert {result.status for result in results.values()} == {Status.STOPPED}
    assert "1 measured updates" in results["UpdateTooLarge"].coverage.missing[0]
