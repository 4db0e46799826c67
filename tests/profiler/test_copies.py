"""Copies to a device between the loader and the forward pass. Where there is none, ``meta`` stands in for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stepwatch.cli.chrome import export_chrome
from stepwatch.cli.step_times import step_times
from stepwatch.probe import Hook, device_clock
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.profiler.phases import PHASES
from tests.profiler import cuda_standin
from tests.profiler.test_device_times import Event

METHODS = ("to", "cuda", "pin_memory")


class Copying(nn.Module):
    """Copies in its forward pass as well, which is part of that."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.device = device

    def forward(self, x: torch.Tensor) -> Any:
        torch.ones(1000, 100).to(self.device)
        return self.linear(x)


def train(
    run: Path, device: str = "meta", copy: Callable[[torch.Tensor], torch.Tensor] | None = None, batches: int = 3
) -> pd.DataFrame:
    """Timed steps, of so many micro-batches each."""
    model = Copying(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(torch.randn(48, 8)), batch_size=4)
    with Hook(run, model=model, optimizer=optimizer, system_interval=0):
        for number, (x,) in enumerate(loader, start=1):
            (copy or (lambda x: x.to(device)))(x)
            model(x).square().mean().backward()
            if number % batches == 0:
                optimizer.step()
    return Trace(run).table("steps").to_pandas()


def test_copies_of_batches_are_a_phase_and_phases_add_up(tmp_path: Path) -> None:
    rows = train(tmp_path / "run")
    assert len(rows) == 4 and (rows["copy_ns"] > 0).all()
    times = step_times(Trace(tmp_path / "run"), 0)
    assert times[list(PHASES)].sum(axis=1).tolist() == pytest.approx(times["duration"].tolist())
    assert (times["loader"] > 0).all() and (times["copy"] > 0).all()
    export_chrome(Trace(tmp_path / "run"), tmp_path / "trace.json", [])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len([event for event in events if event["name"] == "copy"]) == 4


@pytest.mark.parametrize("stays", [lambda x: x, lambda x: x.to("cpu"), lambda x: x.to(torch.float64)])
def test_what_stays_on_the_host_is_no_copy(tmp_path: Path, stays: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert train(tmp_path / "run", copy=stays)["copy_ns"].isna().all(), "the one within the model is not told apart"


def test_a_copy_that_fails_is_the_scripts_own_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no-such-device"):
        train(tmp_path / "run", copy=lambda x: x.to("no-such-device"))
    assert not any(name in vars(torch.Tensor) for name in METHODS), "a closed hook leaves torch as it was"


def test_the_device_tells_how_long_its_copies_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_standin.install(monkeypatch.setattr)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(device_clock, "_SECONDS", 1e-9)  # every step is marked
    rows = train(tmp_path / "run", copy=lambda x: x.to(torch.float64).to("meta")).iloc[3:]
    assert (rows["device_copy_ns"] == 3e6).all(), "three copies of a millisecond; what stays on the host is none"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_functions_still_copy_in_one_graph(tmp_path: Path) -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def cast(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float64).cos()

    with Hook(tmp_path / "run", system_interval=0):
        assert cast(torch.zeros(3)).tolist() == [1, 1, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_to_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_clock, "_SECONDS", 1e-9)
    batch = torch.ones(64 << 20)  # 256 MiB take 4 ms over the fastest bus there is
    rows = train(tmp_path / "pageable", "cuda", copy=lambda x: batch.to("cuda"), batches=1).iloc[4:]
    assert (rows["copy_ns"] > 3e6).all() and (rows["device_copy_ns"] > 3e6).all()
    pinned = batch.pin_memory()
    asked = train(tmp_path / "pinned", "cuda", copy=lambda x: pinned.cuda(non_blocking=True), batches=1).iloc[4:]
    assert (asked["device_copy_ns"] > 3e6).all()
    assert asked["copy_ns"].median() < asked["device_copy_ns"].median(), "the host only asks for it"
