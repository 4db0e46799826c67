"""SageMaker's rules about labels, predictions and inputs, on trainings that record them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stepwatch.probe import Hook, ReductionConfig, SaveConfig
from stepwatch.rules.finding import Status
from tests.rules.sagemaker_runs import fires_at, judge, train


def record(run: Path, tensors: list[dict[str, torch.Tensor]], *, collections: bool = False) -> Path:
    """Record these tensors of a script's own whole, one dictionary in each step."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Hook(
        run,
        model=model,
        optimizer=optimizer,
        save_config=SaveConfig(save_interval=1),
        reduction_config=ReductionConfig(save_raw_tensor=True),
        system_interval=0,
    ) as hook:
        for each in tensors:
            optimizer.zero_grad()
            model(torch.ones(1, 1)).sum().backward()
            for name, tensor in each.items():
                hook.save_tensor(name, tensor, name.split("/")[0] if collections else "default")
            optimizer.step()
    return run


def labelled(counts: dict[int, int], wrong: dict[int, int] | None = None) -> dict[str, torch.Tensor]:
    """So many labels of each class, and predictions of which so many of a class are of the next class."""
    labels = np.concatenate([np.full(count, label) for label, count in counts.items()])
    predictions = labels.copy()
    for label, count in (wrong or {}).items():
        predictions[np.flatnonzero(labels == label)[:count]] = label + 1
    return {"labels": torch.tensor(labels), "predictions": torch.tensor(predictions)}


def test_class_imbalance_waits_for_its_samples(tmp_path: Path) -> None:
    step = labelled({0: 990 // 4, 1: 10 // 4})
    run = record(tmp_path / "run", [step] * 4)
    finding = judge(run, "ClassImbalance").findings[0]
    assert finding.first_step == 2 and finding.value == pytest.approx(247 / 2)  # 249 labels in each step
    assert fires_at(run, "ClassImbalance", threshold_imbalance="200") is None
    result = judge(run, "ClassImbalance", samples="100000")
    assert result.status is Status.STOPPED and "fewer than 100000 labels" in result.coverage.missing[0]
    even = record(tmp_path / "even", [labelled({0: 150, 1: 100, 2: 60})] * 4)
    assert fires_at(even, "ClassImbalance") is None


def test_class_imbalance_by_predictions(tmp_path: Path) -> None:
    run = record(tmp_path / "run", [labelled({0: 100, 1: 100}, wrong={1: 80})] * 3)
    finding = judge(run, "ClassImbalance").findings[0]
    assert finding.first_step == 2 and finding.value == 0.8 and "class 1" in finding.message
    assert fires_at(run, "ClassImbalance", threshold_misprediction="0.8") is None


def test_class_imbalance_takes_the_largest_of_a_row(tmp_path: Path) -> None:
    step = labelled({0: 200, 1: 200}, wrong={0: 190})
    rows = {"labels": step["labels"], "predictions": nn.functional.one_hot(step["predictions"]).float()}
    run = record(tmp_path / "run", [rows] * 2)
    assert fires_at(run, "ClassImbalance", argmax="True") == 1
    assert "argmax?" in str(judge(run, "ClassImbalance", samples="801").coverage.missing)


def test_class_imbalance_of_a_training_without_whole_tensors(tmp_path: Path) -> None:
    def data(rare: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(120, 6), torch.cat([torch.zeros(120 - rare), torch.ones(rare)]).long()

    loss_names = {"labels_regex": "Loss_input_1", "predictions_regex": "Loss_input_0"}
    imbalanced = train(tmp_path / "imbalanced", data=lambda: data(4), steps=8)
    assert fires_at(imbalanced, "ClassImbalance", **loss_names) == 4
    even = train(tmp_path / "even", data=lambda: data(60), steps=8)
    assert fires_at(even, "ClassImbalance", threshold_misprediction="1", **loss_names) is None
    assert judge(even, "ClassImbalance").status is Status.STOPPED


def test_confusion(tmp_path: Path) -> None:
    perfect = labelled(dict.fromkeys(range(10), 100))
    quiet = record(tmp_path / "quiet", [perfect] * 3)
    assert fires_at(quiet, "Confusion") is None
    assert fires_at(quiet, "Confusion", category_no="10", min_diag="1.0") is None
    mistaken = {**perfect, "predictions": torch.where(perfect["labels"] == 4, 7, perfect["labels"])}
    run = record(tmp_path / "run", [perfect, mistaken])
    finding = judge(run, "Confusion").findings[0]
    assert finding.first_step == 1 and finding.value == 0.5 and "class 7" in finding.message
    off = judge(run, "Confusion", min_diag="0.0", max_off_diag="0.01").findings[0]
    assert off.value == 0.5 and "class 7" in off.message and "class 4" in off.message
    assert fires_at(run, "Confusion", min_diag="0", max_off_diag="0.5") is None


def test_confusion_by_collections_and_probabilities(tmp_path: Path) -> None:
    labels = torch.arange(3).repeat(20)
    right, wrong = nn.functional.one_hot(labels).float(), torch.ones(60, 3).mul_(0.1)
    wrong[:, 0] = 0.8
    steps = [{"labels/y": labels, "predictions/p": right}, {"labels/y": labels, "predictions/p": wrong}]
    run = record(tmp_path / "run", steps, collections=True)
    finding = judge(run, "Confusion").findings[0]
    assert finding.first_step == 1 and finding.value == pytest.approx(1 / 3)
    nothing = judge(run, "Confusion", labels_collection="others")
    assert nothing.status is Status.STOPPED and "no labels with predictions" in nothing.coverage.missing[0]


class ImageNet(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv1(x).mean((2, 3)))


@pytest.mark.parametrize(("channels", "whole"), [(3, True), (1, True), (1, False)])
def test_check_input_images(tmp_path: Path, channels: int, whole: bool) -> None:
    def images(mean: float) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(64, channels, 8, 8)
        x[:, -1] += mean
        return x, torch.randint(0, 3, (64,))

    regex = {"regex": "^conv1_input"}
    shifted = train(tmp_path / "shifted", model=ImageNet(channels), data=lambda: images(0.5), whole=whole)
    finding = judge(shifted, "CheckInputImages", **regex).findings[0]
    assert finding.first_step == 7  # 512 images
    assert finding.value == pytest.approx(0.5, abs=0.05) and f"channel {channels - 1}" in finding.message
    centred = train(tmp_path / "centred", model=ImageNet(channels), data=lambda: images(0.0), whole=whole)
    assert fires_at(centred, "CheckInputImages", **regex) is None
    assert judge(centred, "CheckInputImages").status is Status.STOPPED  # the default name is one of MXNet's


def test_check_input_images_says_what_it_lacks(tmp_path: Path) -> None:
    run = train(
        tmp_path / "run", model=ImageNet(3), data=lambda: (torch.randn(64, 3, 8, 8), torch.randint(0, 3, (64,)))
    )
    result = judge(run, "CheckInputImages", regex="^conv1_input")
    assert result.status is Status.STOPPED and "whole tensors" in result.coverage.missing[0]


class TextNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(x).mean(1))


@pytest.mark.parametrize("whole", [True, False])
def test_nlp_sequence_ratio(tmp_path: Path, whole: bool) -> None:
    padding = iter([2, 2, 2, 7, 2, 2])

    def data() -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randint(2, 20, (16, 10))
        x[:, : next(padding)] = 0
        x[:, -1] = 1
        return x, torch.randint(0, 3, (16,))

    run = train(tmp_path / "run", model=TextNet(), data=data, steps=6, whole=whole)
    names = {"tensor_regex": "^embedding_input"}
    finding = judge(run, "NLPSequenceRatio", **names).findings[0]
    assert finding.first_step == 3 and finding.value == 70
    assert fires_at(run, "NLPSequenceRatio", token_thresholds_percent="70", **names) is None
    two = {"token_values": "0, 1", "token_thresholds_percent": "90,9.9"}
    result = judge(run, "NLPSequenceRatio", **two, **names)
    if whole:
        assert result.findings[0].first_step == 0 and "token 1 makes up 10 %" in result.findings[0].message
    else:
        assert not result.findings and "whole tensors" in result.coverage.missing[0]
