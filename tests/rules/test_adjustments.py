"""Clipping and loss scales, recorded from real training; what is wrong with them, and what only looks so."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Severity, Status
from stepwatch.rules.recommended.adjustments import ClippingAlwaysActive, LossScaleCollapse
from stepwatch.rules.replay import analyze
from stepwatch.rules.testing import SyntheticRun

Clip = Callable[[nn.Module], object]


def train(
    run: Path, clip: Clip, *, kind: type[torch.optim.Optimizer] = torch.optim.SGD, lr: float = 0.05, steps: int = 260
) -> dict[str, RuleResult]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = kind(model.parameters(), lr=lr)
    with Hook(run, model=model, optimizer=optimizer, save_config=SaveConfig(save_interval=5), system_interval=0):
        for _ in range(steps):
            x = torch.randn(32, 6)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
            clip(model)
            optimizer.step()
    results = analyze(Trace(run), configure(["ClippingAlwaysActive", "LossScaleCollapse"])).results
    return {result.rule: result for result in results}


def by_norm(limit: float) -> Clip:
    return lambda model: clip_grad_norm_(model.parameters(), limit)


def by_value(limit: float) -> Clip:
    return lambda model: nn.utils.clip_grad_value_(model.parameters(), limit)


@pytest.mark.parametrize("clip", [by_norm(1e-4), by_value(1e-6)], ids=["norm", "value"])
def test_clipping_that_leaves_nothing_of_the_gradient(tmp_path: Path, clip: Clip) -> None:
    (finding,) = train(tmp_path / "run", clip)["ClippingAlwaysActive"].findings
    assert finding.severity is Severity.WARNING
    assert finding.first_step == 0 and finding.last_step == 200
    assert finding.value > 10


@pytest.mark.parametrize("clip", [by_norm(1.0), by_norm(math.inf), by_value(1.0)], ids=["norm", "measured", "value"])
def test_usual_clipping_is_no_finding(tmp_path: Path, clip: Clip) -> None:
    result = train(tmp_path / "run", clip)["ClippingAlwaysActive"]
    assert result.status is Status.NO_ISSUES_FOUND
    assert result.coverage.margin is not None and result.coverage.margin < 0.5


def test_a_job_that_learns_may_clip_as_it_likes(tmp_path: Path) -> None:
    result = train(tmp_path / "run", by_norm(1e-3), kind=torch.optim.Adam, lr=0.01)["ClippingAlwaysActive"]
    assert result.status is Status.NO_ISSUES_FOUND
    assert result.coverage.margin is not None and result.coverage.margin > 10, "it is far beyond"


def test_what_is_recorded_is_the_norm_before_clipping_at_saved_steps(tmp_path: Path) -> None:
    norms: list[float] = []

    def clip(model: nn.Module) -> None:
        first, last = model[0], model[2]  # type: ignore[index]
        norms.append(float(clip_grad_norm_(first.parameters(), 0.01)))
        clip_grad_norm_(last.parameters(), 0.02)

    train(tmp_path / "run", clip, steps=11)
    rows = Trace(tmp_path / "run").table("scalars").to_pylist()
    recorded = {(row["step"], row["name"]): row["value"] for row in rows if row["name"].startswith("grad_clip")}
    assert [recorded[step, "grad_clip/norm"] for step in (0, 5, 10)] == pytest.approx([norms[i] for i in (0, 5, 10)])
    assert recorded[5, "grad_clip/max_norm"] == 0.01 and recorded[5, "grad_clip/max_norm/1"] == 0.02
    assert {step for step, _ in recorded} == {0, 5, 10}


def test_torchs_functions_are_its_own_again_when_the_hook_is_closed(tmp_path: Path) -> None:
    def functions() -> list[object]:
        module = nn.utils.clip_grad
        inner = getattr(module, "_clip_grads_with_norm_", None)
        return [inner, module.clip_grad_norm_, nn.utils.clip_grad_value_, torch.amp.GradScaler.update]

    before = functions()
    with Hook(tmp_path / "a", system_interval=0), Hook(tmp_path / "b", system_interval=0):
        assert functions() != before
    assert functions() == before


def with_scaler(run: Path, scale: float) -> RuleResult:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with Hook(run, model=model, optimizer=optimizer, save_config=SaveConfig(save_interval=2), system_interval=0):
        for number in range(20):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 6)).square().mean()
            scaler.scale(loss * (math.inf if number == 4 else 1)).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    (result,) = analyze(Trace(run), configure(["LossScaleCollapse"])).results
    return result


def test_a_scale_that_settles_is_no_finding_and_a_step_left_out_is_no_second_clipping(tmp_path: Path) -> None:
    result = with_scaler(tmp_path / "run", 2.0**16)
    assert result.status is Status.NO_ISSUES_FOUND
    rows = Trace(tmp_path / "run").table("scalars").to_pylist()
    assert {row["value"] for row in rows if row["name"] == "grad_scaler/scale"} == {2.0**16, 2.0**15}
    assert {row["name"] for row in rows if "norm" in row["name"]} == {"grad_clip/norm", "grad_clip/max_norm"}


def test_a_scale_below_one(tmp_path: Path) -> None:
    (finding,) = with_scaler(tmp_path / "run", 0.5).findings
    assert finding.severity is Severity.WARNING and finding.threshold == 1.0
    assert finding.first_step == 0 and finding.last_step <= 8


def test_a_scale_that_is_on_its_way_up_again() -> None:
    run = SyntheticRun().scalar("grad_scaler/scale", [65536, 0.5, 0.5, 0.5, 0.5, 1, 2, 0.5, 0.5])
    assert run.judge(LossScaleCollapse()).findings == []


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    results = train(tmp_path / "run", lambda model: None, steps=20)
    assert {result.status for result in results.values()} == {Status.STOPPED}
    assert "no clipping" in results["ClippingAlwaysActive"].coverage.missing[0]
    with pytest.raises(ValueError, match=r"factor is 1; expected more than 1"):
        ClippingAlwaysActive(factor=1)
