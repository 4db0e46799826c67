"""Memory of devices: what the allocator held at every step, retries, and batches that are too small for the memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stepwatch.probe import Hook
from stepwatch.probe import allocator as probe_allocator
from stepwatch.probe.store.reader import Trace
from tests.profiler import cuda_standin
from tests.profiler.cuda_standin import GIB
from tests.profiler.made_up import GPU, SECOND, judged


def train(run: Path, device: str, until: Callable[[Trace], bool]) -> Trace:
    model = nn.Linear(8, 8, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Hook(run, model=model, optimizer=optimizer, system_interval=0):
        for step in range(5_000):
            model(torch.ones(8, 8, device=device)).square().mean().backward()
            optimizer.step()
            if step % 200 == 199 and until(Trace(run)):
                break
    return Trace(run)


def recorded(trace: Trace) -> Any:
    columns = [*probe_allocator.STATISTICS, "allocation_retries", "device_bytes"]
    return trace.table("steps", columns=columns).to_pandas().dropna()


def test_statistics_come_with_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_standin.install(monkeypatch.setattr)
    rows = recorded(train(tmp_path / "run", "cpu", lambda trace: len(recorded(trace)) > 0))
    row = rows.iloc[-1]
    assert row["allocated_bytes"] == 10 and row["peak_bytes"] == 14 and row["reserved_bytes"] == 18
    assert row["fragmented_bytes"] == 4 and row["allocation_retries"] == 1 and row["device_bytes"] == 160 * GIB


def test_without_a_device_there_are_none(tmp_path: Path) -> None:
    assert recorded(train(tmp_path / "run", "cpu", lambda trace: True)).empty


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_statistics_of_a_device_are_torchs_own(tmp_path: Path) -> None:
    row = recorded(train(tmp_path / "run", "cuda", lambda trace: len(recorded(trace)) > 0)).iloc[-1]
    assert 0 < row["allocated_bytes"] <= row["peak_bytes"] <= row["reserved_bytes"]
    assert row["reserved_bytes"] == torch.cuda.memory_reserved()
    assert row["device_bytes"] == torch.cuda.get_device_properties(0).total_memory


def test_tensors_that_pile_up_on_the_device_are_found_with_the_time_that_is_left(tmp_path: Path) -> None:
    """In the reserved memory, where the driver sees nothing of it yet."""

    def memory(per_step: int, wave: int = 0) -> Callable[[int], dict[str, int]]:
        return lambda step: {
            "allocated_bytes": 20 * GIB + step * per_step + (step % 17) * wave,
            "peak_bytes": 50 * GIB + step * per_step,
            "reserved_bytes": 70 * GIB,
            "device_bytes": 80 * GIB,
        }

    held = [(second, GPU, "memory_used_bytes", 71.0 * GIB) for second in range(1000)]
    held += [(second, GPU, "memory_total_bytes", 80.0 * GIB) for second in range(0, 1000, 5)]
    (leak,) = judged(tmp_path / "leak", "MemoryLeak", memory(4 << 20, wave=GIB // 8), held)
    assert leak.rank == 0 and leak.tensors == ("rank 0",) and "what rank 0 holds in tensors" in leak.message
    assert leak.evidence["bytes_per_second"] == pytest.approx(4 << 20, rel=0.05)
    # beside the peak, which a step needs too, 30 GiB were left at first
    assert leak.value == pytest.approx((30 * GIB - leak.last_step * (4 << 20)) / (4 << 20), rel=0.06)
    assert not judged(tmp_path / "level", "MemoryLeak", memory(0, wave=GIB), held)


def test_retries_are_found_and_a_fragmented_memory_told_from_a_full_one(tmp_path: Path) -> None:
    def memory(free: int) -> Callable[[int], dict[str, int]]:
        # a retry every 20 steps from step 500 on
        return lambda step: {
            "reserved_bytes": 76 * GIB,
            "fragmented_bytes": free,
            "allocation_retries": 3 + max(step - 500, 0) // 20,
        }

    (fragmented,) = judged(tmp_path / "fragmented", "Fragmentation", memory(20 * GIB))
    assert "20 GiB of 76 GiB lie free between blocks in use" in fragmented.message
    assert "expandable_segments" in fragmented.suggestion
    assert fragmented.last_step == 600 and fragmented.value == 5
    (full,) = judged(tmp_path / "full", "Fragmentation", memory(GIB))
    assert "the job needs more than there is" in full.message and "checkpointing" in full.suggestion


def test_healthy_allocators_are_quiet(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(4):
        late = random.integers(0, 4)  # a retry now and then, and many while the job starts
        jobs = {"allocation_retries": lambda step, late=late: min(step, 15) + late * (step > 700)}
        free = int(random.integers(1, 30)) * GIB  # much lies free: nothing was missing for that
        assert not judged(
            tmp_path / str(number),
            "Fragmentation",
            lambda step, jobs=jobs, free=free: {
                "reserved_bytes": 60 * GIB,
                "fragmented_bytes": free,
                "allocation_retries": int(jobs["allocation_retries"](step)),
            },
        )


def gpu(use: float, held: float) -> list[tuple[float, str, str, float]]:
    rows = []
    for second in range(1000):
        rows += [(second, GPU, "utilization_percent", use + second % 5), (second, GPU, "memory_used_bytes", held * GIB)]
        if second % 5 == 0:
            rows.append((second, GPU, "memory_total_bytes", 80.0 * GIB))
    return rows


def test_a_batch_that_leaves_the_memory_empty_is_found(tmp_path: Path) -> None:
    (finding,) = judged(tmp_path / "run", "SmallBatch", lambda step: {}, gpu(35, 9))
    assert finding.severity.value == "info" and finding.tensors == (GPU,)
    assert "9 GiB of its 80 GiB" in finding.message and "up to 8 times as large" in finding.suggestion


@pytest.mark.parametrize(
    ("use", "held", "waits"),
    [(90, 9, 0.0), (35, 60, 0.0), (35, 9, 0.5), (62, 30, 0.1)],
    ids=["busy", "memory in use", "waits for data", "ordinary"],
)
def test_where_a_larger_batch_would_not_help_nothing_is_said(
    tmp_path: Path, use: float, held: float, waits: float
) -> None:
    assert not judged(tmp_path / "run", "SmallBatch", lambda step: {"loader_ns": int(waits * SECOND)}, gpu(use, held))
