"""What the hook notes of the data that a model is given."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import STAT_COLUMNS


def found(run: Path) -> dict[tuple[int, str, str], NDArray[np.float64]]:
    rows = Trace(run).table("derived").to_pylist()
    return {(row["step"], row["name"], row["quantity"]): np.array(row["value"]) for row in rows}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, *, options: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.head(self.lstm(x / 255 + options["shift"])[0][:, -1]) * self.scale


def update(model: nn.Module, optimizer: torch.optim.Optimizer, *args: object, **kwargs: object) -> None:
    optimizer.zero_grad()
    model(*args, **kwargs).sum().backward()
    optimizer.step()


def test_what_enters_the_model_and_its_first_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = [255 * torch.rand(6, 5, 3) for _ in range(4)]
    shift = torch.tensor([[1, 2, 3]] * 2)
    config = SaveConfig(save_interval=2)
    with Hook(tmp_path / "run", model=model, optimizer=optimizer, save_config=config, system_interval=0):
        for x in batches:
            update(model, optimizer, x, options={"shift": shift[:1]})
    rows = found(tmp_path / "run")
    assert {step for step, *_ in rows} == {0, 2}
    of = dict(zip((*STAT_COLUMNS, "samples", "identical"), rows[2, "Net_input_0", "input"], strict=True))
    assert (of["numel"], of["samples"], of["identical"]) == (90, 6, 0)
    assert of["mean"] == pytest.approx(batches[2].mean().item(), rel=1e-5)
    assert rows[2, "Net_input_1", "input"].tolist()[-2:] == [1, 1]
    first = dict(zip(STAT_COLUMNS, rows[2, "lstm_input_0", "first_layer"], strict=False))
    assert first["mean"] == pytest.approx((batches[2] / 255 + shift[0]).mean().item(), rel=1e-5)


@pytest.mark.parametrize("first", [nn.BatchNorm1d(6), nn.Embedding(9, 6)])
def test_a_model_that_begins_otherwise_has_no_first_layer(tmp_path: Path, first: nn.Module) -> None:
    model = nn.Sequential(first, nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randint(9, (8, 6)) if isinstance(first, nn.Embedding) else torch.randn(8, 6)
    with Hook(tmp_path / "run", model=model, optimizer=optimizer, system_interval=0):
        for _ in range(5):
            update(model, optimizer, x)
    quantities = {quantity for *_, quantity in found(tmp_path / "run")}
    assert {"input", "batch"} <= quantities
    assert "first_layer" not in quantities


def test_batches_are_counted_by_the_loader_that_they_come_from(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    training = DataLoader(TensorDataset(torch.randn(24, 2)), batch_size=8)
    held_out = DataLoader(TensorDataset(torch.randn(10, 2)), batch_size=2)
    with Hook(tmp_path / "run", model=model, optimizer=optimizer, system_interval=0):
        for _ in range(2):
            model.train()
            for (x,) in training:
                update(model, optimizer, x)
            model.eval()
            for (x,) in held_out:
                model(x)
    batches = [vector for (_, _, quantity), vector in found(tmp_path / "run").items() if quantity == "batch"]
    assert [tuple(vector[1:]) for vector in batches] == [(number, 3) for number in range(1, 7)]
    checksums = [vector[0] for vector in batches]
    assert checksums[:3] == checksums[3:]
    assert len(set(checksums)) == 3


@pytest.mark.parametrize(
    "change",
    [lambda x: x.t().contiguous().t(), lambda x: x.bfloat16(), lambda x: x > 0, lambda x: (x * 9).long()],
    ids=["strided", "bfloat16", "bool", "int64"],
)
def test_tensors_of_any_kind_have_a_checksum_that_tells_them_apart(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    torch.manual_seed(0)
    one, other = change(torch.randn(40, 30)), change(torch.randn(40, 30))
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(()))
    model.forward = lambda x: x.float().sum() * model.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Hook(tmp_path / "run", model=model, optimizer=optimizer, system_interval=0):
        for x in (one, other, one.clone()):
            update(model, optimizer, x)
    first, second, third = (v[0] for (_, _, quantity), v in found(tmp_path / "run").items() if quantity == "batch")
    assert first == third != second


def test_nothing_of_a_batch_is_kept_after_its_update(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Hook(tmp_path / "run", model=model, optimizer=optimizer, system_interval=0):
        for _ in range(3):
            x = torch.randn(4, 2)
            update(model, optimizer, x)
            kept = weakref.ref(x)
            del x
            gc.collect()
            assert kept() is None


def test_the_variance_between_samples_of_the_first_output_that_has_any(tmp_path: Path) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(()))
    outputs = torch.randn(16, 3, 5) + torch.arange(5)
    model.forward = lambda x: {"loss": model.weight * x.sum(), "scores": x[:, 0, :1], "states": [x * model.weight]}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Hook(tmp_path / "run", model=model, optimizer=optimizer, system_interval=0):
        model(outputs)["loss"].backward()
        optimizer.step()
    samples, between, total = found(tmp_path / "run")[0, "Module_output_2", "output_variance"]
    assert samples == 16
    assert between == pytest.approx(outputs.var(0, correction=0).mean().item(), rel=1e-5)
    assert total == pytest.approx(outputs.var(correction=0).item(), rel=1e-5)


def test_evaluations_leave_nothing(tmp_path: Path) -> None:
    model = nn.Linear(2, 1).eval()
    with Hook(tmp_path / "run", model=model, save_config=SaveConfig(save_interval=1), system_interval=0):
        for _ in range(3):
            model(torch.randn(4, 2))
    assert not found(tmp_path / "run")
