"""Short trainings for the rules of SageMaker's set, and what these say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from stepwatch.probe import Hook, ReductionConfig, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.configuration import rule_specs
from stepwatch.rules.finding import RuleResult
from stepwatch.rules.replay import analyze


class Net(nn.Module):
    """Three layers; the activation in the middle has its own name, as SageMaker's default expressions want."""

    def __init__(self, activation: str = "relu", width: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, width)
        kinds = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
        self.add_module(activation, kinds[activation]())
        self.activation = activation
        self.fc2 = nn.Linear(width, width)
        self.add_module(f"second_{activation}", kinds[activation]())
        self.fc3 = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = getattr(self, self.activation), getattr(self, f"second_{self.activation}")
        return self.fc3(second(self.fc2(first(self.fc1(x)))))


def batch(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(size, 6)
    return x, x[:, :3].argmax(1)


def train(
    run: Path,
    *,
    model: nn.Module | None = None,
    lr: float = 0.05,
    steps: int = 12,
    whole: bool = False,
    collections: tuple[str, ...] = ("all",),
    data: Callable[[], tuple[torch.Tensor, torch.Tensor]] = batch,
    each: Callable[[int, Hook, nn.Module], Any] | None = None,
    save_interval: int = 1,
    rules: str | None = None,
) -> Path:
    """Record a training of ``steps`` steps with SGD; ``each`` is called in every step, before the update."""
    if model is None:
        torch.manual_seed(0)
        model = Net()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with Hook(
        run,
        model=model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        include_collections=list(collections),
        save_config=SaveConfig(save_interval=save_interval),
        reduction_config=ReductionConfig(save_raw_tensor=whole),
        system_interval=0,
        rules=rules or (),
    ) as hook:
        for step in range(steps):
            x, y = data()
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            if each is not None:
                each(step, hook, model)
            optimizer.step()
    return run


def curve(
    run: Path,
    losses: dict[int, float] | list[float],
    *,
    name: str = "loss",
    evaluations: Mapping[int, list[float]] = MappingProxyType({}),
) -> Path:
    """Record these training losses by step, and evaluation losses before the step of their number."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    by_step = dict(enumerate(losses)) if isinstance(losses, list) else losses
    with Hook(run, model=model, optimizer=optimizer, system_interval=0) as hook:
        for step in range(max([*by_step, *evaluations]) + 1):
            for value in evaluations.get(step, ()):
                model.eval()
                with torch.no_grad():
                    model(torch.ones(1, 1))
                hook.log(name, value)
            model.train()
            model(torch.ones(1, 1))
            model.weight.grad = torch.zeros_like(model.weight)  # without a loss that the hook would capture
            if step in by_step:
                hook.log(name, by_step[step])
            optimizer.step()
    return run


def spec(rule: str, **parameters: Any) -> RuleSpec:
    """A rule of the set with parameters as SageMaker's JSON has them: text."""
    texts = {key: value if isinstance(value, list) else str(value) for key, value in parameters.items()}
    entry = {"RuleConfigurationName": rule, "RuleParameters": {"rule_to_invoke": rule, **texts}}
    return rule_specs([entry])[0]


def judge(run: Path, rule: str, **parameters: Any) -> RuleResult:
    return analyze(Trace(run), [spec(rule, **parameters)]).results[0]


def fires_at(run: Path, rule: str, **parameters: Any) -> int | None:
    """The step at which the rule fires; None where it finds nothing, having had what it needs."""
    result = judge(run, rule, **parameters)
    if not result.findings:
        assert result.coverage.decided, result.coverage
        return None
    (finding,) = result.findings
    assert finding.rule == rule and finding.message and finding.tensors
    return finding.last_step
