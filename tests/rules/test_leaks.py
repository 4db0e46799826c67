"""Labels that the inputs give away, and labels that no input explains, on jobs that really train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import RuleResult, Severity, Status
from stepwatch.rules.replay import analyze

CLASSES = 4


def data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of 12 numbers that tell the class up to noise."""
    y = torch.randint(CLASSES, (count,))
    return torch.randn(count, 12) + 0.8 * torch.eye(CLASSES, 12)[y], y


def train(
    run: Path,
    rule: str,
    training: tuple[torch.Tensor, torch.Tensor],
    evaluation: tuple[torch.Tensor, torch.Tensor],
    *,
    steps: int = 150,
    width: int = 64,
    rate: float = 0.02,
    every: int = 25,
) -> RuleResult:
    model = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, CLASSES))
    optimizer, loss_fn = torch.optim.Adam(model.parameters(), lr=rate), nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(*training), batch_size=32, shuffle=True)
    config = SaveConfig(save_interval=2)
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0):
        done = 0
        while done < steps:
            for x, y in loader:
                optimizer.zero_grad()
                loss_fn(model(x), y).backward()
                optimizer.step()
                done += 1
                if done % every == 0:
                    model.eval()
                    with torch.no_grad():
                        loss_fn(model(evaluation[0]), evaluation[1])
                    model.train()
                if done == steps:
                    break
    (result,) = analyze(Trace(run), configure([rule])).results
    return result


def with_the_answer(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The labels among the inputs, as a column made from the target does."""
    x, y = pair
    return torch.cat([x[:, :8], 5 * torch.eye(CLASSES)[y]], 1), y


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_column_made_from_the_target_is_worth_a_look(tmp_path: Path) -> None:
    result = train(tmp_path / "run", "SolvedAtOnce", with_the_answer(data(5000)), with_the_answer(data(500)))
    (finding,) = result.findings
    assert finding.severity is Severity.INFO
    assert finding.value < finding.threshold < 0.02
    assert "give the answer away" in finding.message


def test_an_answer_that_only_the_training_data_has_is_a_warning(tmp_path: Path) -> None:
    result = train(tmp_path / "run", "SolvedAtOnce", with_the_answer(data(5000)), data(500))
    assert [finding.severity for finding in result.findings] == [Severity.INFO, Severity.WARNING]
    assert "those of the evaluation do not" in result.findings[1].message


def test_few_samples_that_are_known_by_heart_were_not_solved_at_once(tmp_path: Path) -> None:
    result = train(tmp_path / "run", "SolvedAtOnce", data(64), data(500), width=512)
    losses = Trace(tmp_path / "run").table("scalars", names=["CrossEntropyLoss_output_0"])["value"].to_pylist()
    assert min(losses) < 0.005
    assert result.status is Status.NO_ISSUES_FOUND


def test_what_is_learnt_as_well_as_it_can_be_is_no_finding(tmp_path: Path) -> None:
    for rule in ("SolvedAtOnce", "LabelsLookShuffled"):
        result = train(tmp_path / rule, rule, data(5000), data(500))
        assert result.status is Status.NO_ISSUES_FOUND and result.coverage.decided


def test_shuffled_labels_are_learnt_by_heart_and_never_help_the_evaluation(tmp_path: Path) -> None:
    x, y = data(300)
    result = train(
        tmp_path / "run", "LabelsLookShuffled", (x, y[torch.randperm(300)]), data(500), width=512, every=10, rate=5e-3
    )
    (finding,) = result.findings
    assert finding.value > finding.threshold
    assert "learned by heart" in finding.message


def test_overfitting_is_told_apart_from_shuffled_labels(tmp_path: Path) -> None:
    result = train(tmp_path / "run", "LabelsLookShuffled", data(300), data(500), width=512, every=10, rate=5e-3)
    assert result.status is Status.NO_ISSUES_FOUND
    (overfit,) = analyze(Trace(tmp_path / "run"), configure(["Overfit"])).results
    assert overfit.status is Status.ISSUES_FOUND


@pytest.mark.parametrize("parameter", ["SolvedAtOnce.share=0.5", "SolvedAtOnce.steps=3", "LabelsLookShuffled.guess=2"])
def test_a_parameter_out_of_its_range_is_named(parameter: str) -> None:
    from stepwatch.rules.errors import RuleError

    rule, _, assignment = parameter.partition(".")
    name, _, value = assignment.partition("=")
    (spec,) = configure([rule])
    with pytest.raises(RuleError, match=f"{name} is {value}"):
        spec.with_parameter(name, value).build()
