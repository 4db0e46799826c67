"""A small training job with a bottleneck of choice: python -m tests.profiler.jobs RUN [NAME=VALUE...]."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from stepwatch.probe import Hook
from tests.profiler import cuda_standin


class Samples(Dataset[torch.Tensor]):
    def __init__(self, length: int, seconds: float) -> None:
        self.length = length
        self.seconds = seconds

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.seconds:
            time.sleep(self.seconds)
        return torch.full((8,), 0.5) + 0.01 * (index % 7)


class SlowFile:
    """Throttled storage: each write takes its time."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.file = path.open("wb")
        self.seconds = seconds

    def write(self, data: bytes) -> int:
        time.sleep(self.seconds)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def train(
    run: Path,
    *,
    steps: int = 60,
    work: float = 0.0,
    sample: float = 0.0,
    workers: int = 0,
    growth: float = 0.0,
    leak_mb: int = 0,
    disk_mb: int = 0,
    hang_at: int = -1,
    hang: float = 0.0,
    spin: float = 0.0,
    checkpoint: float = 0.0,
    slow_rank: int = -1,
    rules: str | None = None,
    interval: float = 0.05,
    on_gpu: bool = False,
) -> None:
    """Seconds of ``work`` and MB of ``leak`` are per step, ``growth`` is added to the work at every step."""
    if on_gpu:
        cuda_standin.install()
    rank = int(os.environ.get("RANK", "0"))
    model: Any = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    kept = []
    loader = DataLoader(
        Samples(4 * steps, sample if slow_rank in (-1, rank) else 0.0), batch_size=4, num_workers=workers
    )
    with Hook(run, model=model, optimizer=optimizer, system_interval=interval, rules=rules):
        for step, x in enumerate(loader):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            time.sleep(work + growth * step)
            end = time.process_time() + spin
            while time.process_time() < end:
                pass
            optimizer.step()
            if leak_mb:
                kept.append(torch.ones(leak_mb << 18))
            if disk_mb:
                (run.parent / f"dump{step}").write_bytes(os.urandom(disk_mb << 20))
            if checkpoint and step % 5 == 4:
                torch.save(model.state_dict(), SlowFile(run.parent / "checkpoint", checkpoint))
            if step == hang_at:
                time.sleep(hang)
    if "RANK" in os.environ:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    options: dict[str, Any] = {}
    for argument in sys.argv[2:]:
        key, _, text = argument.partition("=")
        kind = type((train.__kwdefaults__ or {})[key])
        options[key] = text if kind is type(None) else kind(text)
    train(Path(sys.argv[1]), **options)
