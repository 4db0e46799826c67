"""What the hook's tests share: small models, really trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.relu(self.fc1(x)))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost these small models more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_hook(tmp_path: Path) -> Iterator[Callable[..., Hook]]:
    hooks: list[Hook] = []

    def make(**options: Any) -> Hook:
        options.setdefault("save_config", SaveConfig(save_interval=1))
        options.setdefault("system_interval", 0)
        hook = Hook(options.pop("out_dir", tmp_path / "run"), **options)
        hooks.append(hook)
        return hook

    yield make
    for hook in hooks:
        hook.close()


def batch(size: int = 16, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(size, 6)
    return x, x[:, :classes].argmax(1)


def frame(run: Path, table: str, **filters: Any) -> pd.DataFrame:
    return Trace(run).table(table, **filters).to_pandas()


def scalar(run: Path, name: str, mode: str = "TRAIN") -> list[float]:
    rows = frame(run, "scalars", names=[name], modes=[mode])
    return rows.sort_values("step", kind="stable")["value"].tolist()
