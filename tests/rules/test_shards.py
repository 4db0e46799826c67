"""Fully sharded parameters: a rank knows its own part of each, which may be empty, or rows that no batch needs."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import Status
from stepwatch.rules.replay import analyze
from tests import forked

STEPS = 130


class Tagger(nn.Module):
    """Words of which the later half never comes, and a layer with one unit, of which the second rank has nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(64, 8)
        layers = [nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(3)]
        self.hidden = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), *layers)
        self.parity = nn.Linear(16, 1)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.hidden(self.words(words))
        return self.parity(hidden).squeeze(-1)


def train() -> None:
    warnings.simplefilter("error", RuntimeWarning)
    dist.init_process_group("gloo")
    model = fully_shard(Tagger())
    record("run", model)
    model = FullyShardedDataParallel(Tagger(), use_orig_params=True, device_id=torch.device("cpu"))
    record("first generation", model)
    dist.destroy_process_group()


def record(run: str, model: nn.Module) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    schedule = SaveConfig(save_interval=2)
    hook = Hook(run, model=model, optimizer=optimizer, save_config=schedule, rules="recommended", actions=[])
    for _ in range(STEPS):
        words = torch.randint(32, (16,))
        loss = nn.functional.binary_cross_entropy_with_logits(model(words), (words % 2).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hook.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    forked.ranks(2, folder, train)
    return folder


@pytest.mark.parametrize("name", ["run", "first generation"])
def test_a_part_of_a_parameter_is_not_taken_for_the_whole(folder: Path, name: str) -> None:
    trace = Trace(folder / name)
    assert trace.counters == {} and trace.findings() == []
    results = analyze(trace, configure(["recommended"])).results
    assert [result.rule for result in results if result.findings or result.status is Status.ERROR] == []


def test_what_has_no_entries_on_a_rank_is_left_out_there(folder: Path) -> None:
    trace = Trace(folder / "run")
    empty = trace.table("stats", names=["gradient/Tagger_parity.weight"], ranks=[1], columns=["numel"])
    assert set(empty["numel"].to_pylist()) == {0}
    unused = trace.table("stats", names=["gradient/Tagger_words.weight"], ranks=[1], columns=["n_zero"])
    assert set(unused["n_zero"].to_pylist()) == {32 * 8}
    judged = {result.rule: result for result in analyze(trace, configure(["recommended"])).results}
    assert judged["VanishingGradient"].coverage.decided
