"""Where a step's time goes: waiting for data and checkpoints, regions of the script's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset, dataloader

from stepwatch.probe import Hook
from tests.probe.conftest import Net, batch, frame, scalar


class Slow(Dataset[torch.Tensor]):
    def __init__(self, seconds: float, length: int = 24) -> None:
        self.seconds = seconds
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.randn(6)


def train(hook: Hook, model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[torch.Tensor]) -> None:
    for x in loader:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.fixture
def job(make_hook: Callable[..., Hook]) -> tuple[Hook, nn.Module, torch.optim.Optimizer]:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return make_hook(model=model, optimizer=optimizer), model, optimizer


def test_waiting_for_a_loader_is_told_from_the_rest_of_the_data_phase(tmp_path: Path, job) -> None:
    hook, model, optimizer = job
    for x in DataLoader(Slow(0.01), batch_size=4):
        time.sleep(0.02)  # the script's own work between two steps
        model(x).square().mean().backward()
        optimizer.step()
    hook.close()
    steps = frame(tmp_path / "run", "steps").iloc[1:]
    assert (steps["loader_ns"] >= 40e6).all()
    assert (steps["data_ns"] >= steps["loader_ns"] + 20e6).all()
    assert steps["samples"].tolist() == [4] * 5
    assert steps["loader_workers"].tolist() == [0] * 5


def test_workers_shorten_the_wait_and_are_counted(tmp_path: Path, job) -> None:
    hook, model, optimizer = job
    train(hook, model, optimizer, DataLoader(Slow(0.05, 32), batch_size=4, num_workers=2))
    hook.close()
    steps = frame(tmp_path / "run", "steps")
    assert steps["loader_workers"].tolist() == [2] * 8
    assert steps["loader_ns"].iloc[2:].mean() < 180e6, "two workers load a batch of 200 ms every 100 ms"


def test_the_wait_for_the_first_batch_after_an_evaluation_is_the_training_steps(tmp_path: Path, job) -> None:
    hook, model, optimizer = job
    for _ in range(2):
        train(hook, model, optimizer, DataLoader(Slow(0.02, 4), batch_size=2))
        model.eval()
        with torch.no_grad():
            for (x,) in DataLoader(TensorDataset(torch.randn(4, 6)), batch_size=2):
                model(x)
        model.train()
    hook.close()
    steps = frame(tmp_path / "run", "steps")
    training, evaluation = steps[steps["mode"] == "TRAIN"], steps[steps["mode"] == "EVAL"]
    assert (training["loader_ns"] >= 40e6).all() and (training["samples"] == 2).all()
    assert (evaluation["loader_ns"].min() < 40e6) and (evaluation["samples"] == 2).all()
    assert (steps["loader_ns"] <= steps["data_ns"] + 1e6).all()


def test_a_loader_inside_a_dataset_is_counted_once(tmp_path: Path, job) -> None:
    class Nested(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> torch.Tensor:
            return next(iter(DataLoader(Slow(0.02, 1))))[0]

    hook, model, optimizer = job
    train(hook, model, optimizer, DataLoader(Nested(), batch_size=2))
    hook.close()
    steps = frame(tmp_path / "run", "steps")
    assert (steps["loader_ns"] <= steps["data_ns"]).all()
    assert steps["samples"].tolist() == [2, 2, 2]


def test_writing_a_checkpoint_is_a_phase_of_the_step_that_follows(tmp_path: Path, job) -> None:
    hook, model, optimizer = job

    class SlowFile:
        def __init__(self) -> None:
            self.file = (tmp_path / "checkpoint.pt").open("wb")

        def write(self, data: bytes) -> int:
            time.sleep(0.01)
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    for step in range(4):
        if step == 2:
            torch.save(model.state_dict(), SlowFile())
        x, y = batch()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    hook.close()
    steps = frame(tmp_path / "run", "steps")
    assert steps["checkpoint_ns"].isna().tolist() == [True, True, False, True]
    assert 10e6 <= steps["checkpoint_ns"][2] <= steps["data_ns"][2]


def test_regions_add_up_over_the_step(tmp_path: Path, job) -> None:
    hook, model, optimizer = job

    @hook.region("augment")
    def augment(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        return x

    for _ in range(3):
        x, y = batch()
        with hook.region("model"):
            output = model(augment(augment(x)))
        nn.functional.cross_entropy(output, y).backward()
        optimizer.step()
    hook.close()
    augmented, whole = (scalar(tmp_path / "run", f"seconds/{name}") for name in ("augment", "model"))
    # What runs between two steps is told with the step before it, as everything that is logged there.
    assert sum(augmented) >= 0.06
    assert sum(whole) >= sum(augmented)
    assert all(0.01 <= value < 0.1 for value in augmented)


def test_an_exception_passes_through_a_region(tmp_path: Path, job) -> None:
    hook, *_ = job
    with pytest.raises(KeyError), hook.region("broken"):
        raise KeyError("x")
    hook.close()
    assert len(scalar(tmp_path / "run", "seconds/broken")) == 1


class Unmeasured(Mapping[str, torch.Tensor]):
    """A batch that cannot be looked into without being asked for by name."""

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.ones(4, 6)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("ask by name")

    def __len__(self) -> int:
        return 1


class Unending(RandomSampler):
    def __len__(self) -> int:
        raise RuntimeError("nobody knows")


def test_a_batch_or_a_loader_that_cannot_be_measured_still_comes(tmp_path: Path, job) -> None:
    hook, model, optimizer = job
    data = Slow(0, length=8)
    for x in DataLoader(data, sampler=Unending(data), batch_size=4, collate_fn=lambda items: Unmeasured()):
        model(x["x"]).square().mean().backward()
        optimizer.step()
    for x in DataLoader(data, sampler=Unending(data), batch_size=4):
        model(x).square().mean().backward()
        optimizer.step()
    hook.close()
    assert frame(tmp_path / "run", "steps")["step"].tolist() == [0, 1, 2, 3]


def test_a_closed_hook_leaves_torch_as_it_was(make_hook: Callable[..., Hook]) -> None:
    before = (dataloader.DataLoader.__iter__, dataloader._BaseDataLoaderIter.__next__, torch.save)
    one = make_hook()
    assert torch.save is not before[2]
    one.close()
    assert (dataloader.DataLoader.__iter__, dataloader._BaseDataLoaderIter.__next__, torch.save) == before
    with one.region("after"):  # does nothing, and harms nothing
        pass
