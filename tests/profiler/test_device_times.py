"""Times of phases on a device. Without one, events are stood in for: a device that passes one in every millisecond."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stepwatch.cli.profile import profile
from stepwatch.cli.report.profile import time_parts
from stepwatch.probe import Hook, device_clock
from stepwatch.probe.device_clock import DeviceClock
from stepwatch.probe.store.reader import Trace
from tests.profiler import cuda_standin

MS = 1_000_000
DEVICE = ["device_forward_ns", "device_backward_ns", "device_optimizer_ns", "device_collective_ns"]


class Event:
    passed = 0.0

    def __init__(self, **options: bool) -> None:
        assert options["enable_timing"]
        self.at: float | None = None
        self.waited_for = False

    def record(self, stream: object = None) -> None:
        Event.passed += 1.0
        self.at = Event.passed

    def synchronize(self) -> None:
        self.waited_for = True

    def elapsed_time(self, end: Event) -> float:
        assert end.waited_for and self.at is not None and end.at is not None
        return end.at - self.at


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cuda_standin.install(monkeypatch.setattr)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    yield


def train(run: Path, steps: int, device: str = "cpu", width: int = 8, **options: Any) -> Any:
    """Rows of the training steps, each of two micro-batches."""
    model = nn.Linear(width, width, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    with Hook(run, model=model, optimizer=optimizer, system_interval=0, **options):
        for _ in range(steps):
            for _ in range(2):
                model(torch.ones(width, width, device=device)).square().mean().backward()
            optimizer.step()
    columns = ["step", "forward_ns", "backward_ns", "duration_ns", *DEVICE]
    return Trace(run).table("steps", columns=columns, modes=["TRAIN"]).to_pandas()


def test_phases_are_as_long_as_between_the_events(standin: None) -> None:
    clock = DeviceClock()
    clock.begin("forward_ns")
    clock.end("forward_ns")
    assert clock.turn(1, 2.0) is None, "the first step is not marked: how long steps are is not known yet"
    for _ in range(2):
        clock.begin("forward_ns")
        clock.end("forward_ns")
    clock.begin("backward_ns")
    clock.begin("collective_ns")
    clock.begin("collective_ns")  # one that waits for another
    clock.end("collective_ns")
    clock.end("collective_ns")
    clock.end("backward_ns")
    clock.begin("loader_ns")
    clock.end("loader_ns")
    times = clock.turn(2, 2.0)
    assert times is not None
    # begin backward 5, begin collective 6 and 7, end collective 8, end backward 9
    assert times() == {
        "device_forward_ns": 2 * MS,
        "device_collective_ns": 2 * MS,
        "device_backward_ns": 4 * MS,
    }


def test_about_one_step_in_a_second_is_marked_the_same_on_all_ranks(standin: None) -> None:
    marked: dict[float, list[int]] = {}
    for seconds in (0.06, 0.1, 0.5, 3.0):
        clock = DeviceClock()
        for step in range(100):
            clock.turn(step, seconds)
            if clock.active:
                marked.setdefault(seconds, []).append(step)
    assert marked[0.1] == list(range(0, 100, 16))
    assert marked[0.06] == marked[0.1][::2]
    assert len(marked[0.5]) == 50 and len(marked[3.0]) == 100


def test_graphs_that_are_captured_and_devices_that_fail_are_left_alone(
    standin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for capturing in (lambda: True, fail):
        clock = DeviceClock()
        clock.turn(0, 2.0)
        clock.begin("forward_ns")
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", capturing)
        clock.end("forward_ns")
        assert not clock.active and clock.turn(1, 2.0) is None
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def test_they_are_recorded_with_their_steps(standin: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_clock, "_SECONDS", 1e-9)  # every step is marked
    rows = train(tmp_path / "run", 40).set_index("step")[DEVICE]
    marked = rows.dropna(subset=["device_forward_ns"])
    assert len(marked) >= 35
    assert (marked[["device_forward_ns", "device_backward_ns"]] == 2 * MS).all(axis=None), "two micro-batches"
    assert (marked["device_optimizer_ns"] == MS).all()
    assert rows["device_collective_ns"].isna().all()
    trace = Trace(tmp_path / "run")
    assert profile(trace)["on_device"]["0"]["forward"]["p50_ms"] == 2
    parts = {part.title: part for part in time_parts(trace, [])}
    assert ("rank 0", "backward", "2", "2", "2") in parts["Phases on the device"].rows


def test_without_a_device_there_are_none(tmp_path: Path) -> None:
    assert train(tmp_path / "run", 10)[DEVICE].isna().all(axis=None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_that_is_behind_its_host_has_longer_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_clock, "_SECONDS", 1e-9)
    rows = train(tmp_path / "run", 60, "cuda", 8192).dropna(subset=["device_forward_ns"]).iloc[1:]
    assert len(rows)
    # two products of 8192^3 take a device that does 2 PFLOP/s half a millisecond; the host only asks for them
    assert (rows["device_forward_ns"] > MS // 2).all()
    assert (rows["device_backward_ns"] > rows["device_forward_ns"]).all()
