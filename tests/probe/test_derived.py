"""Derived quantities beside a plain count of the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.derived import MAX_CLASSES, UnitActivity, class_counts
from stepwatch.probe.store.reader import Trace


def counted_activity(outputs: list[NDArray[np.float32]]) -> list[float]:
    """By going through the units one by one."""
    per_step = []
    for output in outputs:
        by_unit = np.moveaxis(output, 1 if output.ndim >= 4 else -1, 0)
        per_step.append([not (unit > 0).any() for unit in by_unit])
    units = len(per_step[-1])
    lasting = [
        sum(all(step[unit] for step in per_step[-window:]) for unit in range(units)) if len(per_step) >= window else 0
        for window in (10, 50)
    ]
    return [units, sum(per_step[-1]), *lasting]


@pytest.mark.parametrize("shape", [(6, 8), (3, 4, 8), (2, 8, 3, 3), (2, 8, 2, 3, 2)])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.05, 0.5, 0.98]))
def test_unit_activity(shape: tuple[int, ...], seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    axis = 1 if len(shape) >= 4 else -1
    by_unit = np.ones(len(shape), dtype=int)
    by_unit[axis] = 8
    quiet = generator.random(8).reshape(by_unit) < share  # these seldom fire, and some never
    activity, outputs = UnitActivity(), []
    for _ in range(55):
        output = generator.standard_normal(shape)
        output = np.where(quiet & (generator.random() > 0.03), -1, output).clip(0).astype(np.float32)
        outputs.append(output)
        assert activity.observe(torch.from_numpy(output))().tolist() == counted_activity(outputs)


def test_activity_begins_anew_with_another_number_of_units() -> None:
    activity = UnitActivity()
    for _ in range(12):
        vector = activity.observe(torch.zeros(2, 5))()
    assert vector.tolist() == [5, 5, 5, 0]
    assert activity.observe(torch.zeros(2, 7))().tolist() == [7, 7, 0, 0]


def test_activity_is_that_of_its_step_however_late_it_is_fetched() -> None:
    activity = UnitActivity()
    output = torch.zeros(2, 3)
    first = activity.observe(output)
    output[0] = 1
    second = activity.observe(output)
    assert first().tolist() == [3, 3, 0, 0]
    assert second().tolist() == [3, 0, 0, 0]


def test_a_unit_that_is_nan_is_not_silent() -> None:
    output = torch.tensor([[0.0, float("nan"), 0.0], [0.0, 0.0, 2.0]])
    assert UnitActivity().observe(output)().tolist() == [3, 1, 0, 0]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_class_counts(data: st.DataObject) -> None:
    classes = data.draw(st.integers(1, 6))
    samples = data.draw(st.integers(1, 9))
    positions = data.draw(st.sampled_from([(), (4,), (2, 3)]))
    ignore = data.draw(st.sampled_from([-100, 0, classes - 1]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    logits = torch.randn(samples, classes, *positions, generator=generator)
    labels = torch.randint(0, classes, (samples, *positions), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = ignore
    seen, right = np.zeros(classes), np.zeros(classes)
    best = np.moveaxis(logits.numpy(), 1, -1).reshape(-1, classes).argmax(1)
    for label, guess in zip(labels.flatten().tolist(), best.tolist(), strict=True):
        if label != ignore:
            seen[label] += 1
            right[label] += label == guess
    assert class_counts(logits, labels, ignore)().tolist() == [*seen, *right]


# -- as the hook records them ----------------------------------------------------------------------------


class Classifier(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.relu1 = nn.ReLU()
        self.fc = nn.Linear(4 * 6 * 6, 5)
        self.relu2 = nn.ReLU()
        self.smooth = nn.GELU()
        self.head = nn.Linear(5, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.relu1(self.conv(images)).flatten(1)
        return self.head(self.smooth(self.relu2(self.fc(hidden))))


def record(folder: Path, loss_fn: nn.Module, labels: torch.Tensor, classes: int = 3, steps: int = 3) -> Trace:
    model = Classifier(classes)
    with torch.no_grad():
        model.conv.bias[0] = -1e3  # one dead channel
        model.fc.bias[:2] = -1e3  # two dead units
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    with Hook(folder, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=SaveConfig(save_interval=1)):
        for _ in range(steps):
            model.train()
            optimizer.zero_grad()
            loss_fn(model(torch.rand(6, 1, 8, 8)), labels).backward()
            optimizer.step()
            model.eval()  # an evaluation pass with no active unit does not count
            with torch.no_grad():
                model(torch.full((2, 1, 8, 8), float("-inf")))
    trace = Trace(folder)
    assert trace.counters.get("hook_errors", 0) == 0, trace.notes
    return trace


def vectors(trace: Trace, quantity: str) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {}
    for row in trace.table("derived").to_pylist():
        if row["quantity"] == quantity:
            found.setdefault(row["name"], []).append(row["value"])
    return found


def test_recorded_unit_activity(tmp_path: Path) -> None:
    trace = record(tmp_path / "run", nn.CrossEntropyLoss(), torch.tensor([0, 1, 2, 0, 1, 0]), steps=11)
    found = vectors(trace, "unit_activity")
    assert set(found) == {"relu1_output_0", "relu2_output_0"}  # a GELU is never exactly zero
    for name, units, dead in (("relu1_output_0", 4, 1), ("relu2_output_0", 5, 2)):
        rows = found[name]
        assert len(rows) == 11
        assert all(row[0] == units and row[1] >= dead for row in rows)
        assert [row[2] for row in rows[:9]] == [0] * 9  # too few saved steps to say
        assert rows[9][2] >= dead and rows[9][3] == 0


def test_recorded_class_counts(tmp_path: Path) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 0])
    rows = vectors(record(tmp_path / "run", nn.CrossEntropyLoss(), labels), "class_counts")
    counts = rows["CrossEntropyLoss_input_1"]
    assert len(counts) == 3
    for row in counts:
        assert row[:3] == [3, 2, 1]
        assert all(0 <= right <= seen for seen, right in zip(row[:3], row[3:], strict=True))


@pytest.mark.parametrize(
    ("loss_fn", "labels", "classes"),
    [
        (nn.CrossEntropyLoss(), torch.full((6, 3), 1 / 3), 3),  # labels given as probabilities
        (nn.MSELoss(), torch.zeros(6, 3), 3),
        (nn.CrossEntropyLoss(), torch.zeros(6, dtype=torch.long), MAX_CLASSES + 1),
    ],
    ids=["probabilities", "no classification", "too many classes"],
)
def test_no_class_counts(tmp_path: Path, loss_fn: nn.Module, labels: torch.Tensor, classes: int) -> None:
    trace = record(tmp_path / "run", loss_fn, labels, classes)
    assert vectors(trace, "class_counts") == {}


def test_a_unit_of_a_channels_last_image_is_silent_as_any_other() -> None:
    output = torch.zeros(2, 3, 4, 4)
    output[1, 2, 3, 3] = 1
    assert UnitActivity().observe(output.to(memory_format=torch.channels_last))().tolist() == [3, 2, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_unit_activity_of_other_precisions(dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal
    rows = [[0.0, -0.0, -1.0, smallest, float("inf"), float("-inf"), float("nan")]] * 2
    assert UnitActivity().observe(torch.tensor(rows, dtype=dtype))().tolist() == [7, 4, 0, 0]
