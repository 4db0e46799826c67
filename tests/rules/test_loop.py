"""Mistakes of the training loop, really made; and loops that look like them and are right."""

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

RULES = ["GradientsNotReset", "ModelInEvalMode", "ZeroLearningRate", "UpdatesSkipped"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(16, 6)
    return x, x[:, :3].argmax(1)


def judge(run: Path) -> dict[str, RuleResult]:
    return {result.rule: result for result in analyze(Trace(run), configure(RULES, [])).results}


def train(run: Path, step: Callable[[int, nn.Module, torch.optim.Optimizer], None], steps: int = 80) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Hook(run, model=model, optimizer=optimizer, save_config=SaveConfig(save_interval=5), system_interval=0):
        for number in range(steps):
            step(number, model, optimizer)


def backward(model: nn.Module) -> None:
    x, y = batch()
    nn.functional.cross_entropy(model(x), y).backward()


def none(optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)


def in_place(optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)


def by_data(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.data.zero_()


@pytest.mark.parametrize("reset", [none, in_place, by_data])
@pytest.mark.parametrize("when", ["before the backward pass", "after the update", "every fourth micro-batch"])
def test_gradients_that_are_reset_in_any_way_are_no_finding(tmp_path: Path, reset, when: str) -> None:
    def step(number: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if when == "before the backward pass":
            reset(optimizer)
        backward(model)
        if when != "every fourth micro-batch" or number % 4 == 3:
            optimizer.step()
            if when != "before the backward pass":
                reset(optimizer)

    train(tmp_path / "run", step, steps=200)
    results = judge(tmp_path / "run")
    assert {result.status for result in results.values()} == {Status.NO_ISSUES_FOUND}
    assert results["GradientsNotReset"].coverage.margin == 0


def test_gradients_that_nothing_resets(tmp_path: Path) -> None:
    def step(number: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if number < 30:
            optimizer.zero_grad()  # from step 30 on it is forgotten
        backward(model)
        optimizer.step()

    train(tmp_path / "run", step)
    (finding,) = judge(tmp_path / "run")["GradientsNotReset"].findings
    assert finding.severity is Severity.ERROR
    assert 28 <= finding.first_step <= 31 and finding.last_step <= 55


def test_two_optimizers_that_take_turns_reset_their_own_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = {"G": nn.Linear(4, 6), "D": nn.Linear(6, 1)}
    d, g = (torch.optim.Adam(models[name].parameters(), lr=1e-3) for name in ("D", "G"))
    with Hook(
        tmp_path / "run", model=models, optimizer=[d, g], save_config=SaveConfig(save_interval=5), system_interval=0
    ):
        for _ in range(60):
            fake = models["G"](torch.randn(8, 4))
            d.zero_grad()
            (models["D"](fake.detach()).mean() - models["D"](torch.randn(8, 6)).mean()).backward()
            d.step()
            g.zero_grad()
            (-models["D"](fake).mean()).backward()  # leaves gradients in D, which D's turn resets
            g.step()
    result = judge(tmp_path / "run")["GradientsNotReset"]
    assert result.status is Status.NO_ISSUES_FOUND and result.coverage.margin == 0


def test_a_closure_that_resets_is_no_finding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    x, y = batch()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with Hook(tmp_path / "run", model=model, optimizer=optimizer, system_interval=0):
        for _ in range(40):
            optimizer.step(closure)
    assert judge(tmp_path / "run")["GradientsNotReset"].status is Status.NO_ISSUES_FOUND


def test_a_model_left_in_eval_mode_after_its_first_evaluation(tmp_path: Path) -> None:
    def step(number: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if number == 20:
            model.eval()
            with torch.no_grad():
                model(batch()[0])
        optimizer.zero_grad()
        backward(model)
        optimizer.step()

    train(tmp_path / "run", step)
    results = judge(tmp_path / "run")
    (finding,) = results["ModelInEvalMode"].findings
    assert finding.severity is Severity.WARNING
    assert 18 <= finding.first_step <= 21
    assert results["GradientsNotReset"].status is Status.NO_ISSUES_FOUND


def test_batch_norm_that_is_frozen_in_a_model_that_trains_is_no_finding(tmp_path: Path) -> None:
    def step(number: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.train()
        model.layers[1].eval()
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
        model.eval()

    train(tmp_path / "run", step)
    assert judge(tmp_path / "run")["ModelInEvalMode"].status is not Status.ISSUES_FOUND


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (lambda step: 0.0, Severity.ERROR),
        (lambda step: 0.01 * max(0, 30 - step), Severity.WARNING),
        (lambda step: min(1.0, step / 40), None),
        (lambda step: max(0.0, 1 - step / 79), None),
    ],
    ids=["always zero", "decayed to zero too early", "warm-up from zero", "decayed to zero at the end"],
)
def test_learning_rate_zero(tmp_path: Path, rate: Callable[[int], float], expected: Severity | None) -> None:
    def step(number: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = 0.1 * rate(number)
        optimizer.zero_grad()
        backward(model)
        optimizer.step()

    train(tmp_path / "run", step, steps=100 if expected else 80)
    result = judge(tmp_path / "run")["ZeroLearningRate"]
    assert [finding.severity for finding in result.findings] == ([expected] if expected else [])


def with_scaler(run: Path, breaks: Callable[[int], bool], steps: int = 80) -> RuleResult:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=5)
    with Hook(run, model=model, optimizer=optimizer, system_interval=0):
        for number in range(steps):
            optimizer.zero_grad()
            x, y = batch()
            loss = nn.functional.cross_entropy(model(x), y)
            if breaks(number):
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return judge(run)["UpdatesSkipped"]


def test_a_scaler_that_skips_for_ever_is_found_although_no_step_is_made(tmp_path: Path) -> None:
    result = with_scaler(tmp_path / "run", lambda number: number >= 30)
    assert result.status is Status.ISSUES_FOUND
    (finding,) = result.findings
    assert finding.severity is Severity.ERROR
    assert finding.first_step == 30
    losses = Trace(tmp_path / "run").table("scalars", names=["loss_output_0"], steps=(30, None))["value"].to_pylist()
    assert losses and set(losses) == {float("inf")}, "what the loss was is not hidden either"


def test_a_scaler_that_looks_for_its_scale_is_no_finding(tmp_path: Path) -> None:
    result = with_scaler(tmp_path / "run", lambda number: number < 14 or number % 6 == 0, steps=120)
    assert result.status is Status.NO_ISSUES_FOUND
    run = Trace(tmp_path / "run")
    assert run.table("steps")["step"].to_pylist() == list(range(run.table("steps").num_rows))


# -- a part of the model in eval mode --------------------------------------------------------------------


class Encoded(nn.Module):
    """An encoder as a pretrained one comes, in eval mode, with a head of its own."""

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        if pretrained:
            self.encoder.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x))


def train_parts(run: Path, model: Encoded, before: Callable[[int, Encoded], None]) -> RuleResult:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    config = SaveConfig(save_interval=3)
    with Hook(run, model=model, optimizer=optimizer, save_config=config, system_interval=0):
        for number in range(60):
            before(number, model)
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    (result,) = analyze(Trace(run), configure(["PartInEvalMode"])).results
    return result


def nothing(number: int, model: Encoded) -> None:
    pass


def encoder_evaluated(number: int, model: Encoded) -> None:
    if number == 20:
        model.encoder.eval()


@pytest.mark.parametrize(
    ("pretrained", "before", "first", "said"),
    [(True, nothing, 0, "encoder.3: 1 of the 4"), (False, encoder_evaluated, 20, "encoder: 2 of the 4")],
)
def test_a_trained_part_that_was_left_in_eval_mode(
    tmp_path: Path, pretrained: bool, before: Callable[[int, Encoded], None], first: int, said: str
) -> None:
    result = train_parts(tmp_path / "run", Encoded(pretrained), before)
    (finding,) = result.findings
    assert finding.severity is Severity.WARNING
    assert abs(finding.first_step - first) <= 3
    assert finding.message.startswith(said)


def frozen_norms(number: int, model: Encoded) -> None:
    model.train()
    if number >= 20:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()


def frozen_encoder(number: int, model: Encoded) -> None:
    model.train()
    if number >= 20:
        model.encoder.eval().requires_grad_(False)


def evaluated_now_and_then(number: int, model: Encoded) -> None:
    model.encoder.eval()
    model.encoder(torch.randn(4, 6))
    model.train()


@pytest.mark.parametrize("before", [frozen_norms, frozen_encoder, evaluated_now_and_then])
def test_parts_in_eval_mode_on_purpose_are_no_finding(tmp_path: Path, before: Callable[[int, Encoded], None]) -> None:
    result = train_parts(tmp_path / "run", Encoded(), before)
    assert result.status is Status.NO_ISSUES_FOUND
    assert result.coverage.decided
