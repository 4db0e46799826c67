"""Waiting for other ranks, in jobs that are really started with torchrun on gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import configure
from stepwatch.rules.diagnosis import diagnose
from stepwatch.rules.finding import Finding
from stepwatch.rules.replay import analyze

JOB = """
import copy, sys, time
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from stepwatch.probe import Hook, SaveConfig

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.set_num_threads(1)
torch.manual_seed(0)
plain = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))

def ddp():
    return nn.parallel.DistributedDataParallel(copy.deepcopy(plain))

def compressed():
    model = ddp()
    model.register_comm_hook(None, fp16_compress_hook)
    return model

def fsdp():
    return fully_shard(copy.deepcopy(plain), mesh=init_device_mesh("cpu", (2,)))

def by_hand():
    return copy.deepcopy(plain)

for make in (ddp, compressed, fsdp, by_hand):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    config = SaveConfig(save_interval=10**6)
    with Hook(make.__name__, model=model, optimizer=optimizer, system_interval=0, save_config=config):
        for step in range(15):
            loss = model(torch.randn(8, 16)).square().mean()
            loss.register_hook(lambda gradient: time.sleep(0.04 * rank))  # rank 1 is slow, in its backward pass alone
            loss.backward()
            if make is by_hand:
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad)
            optimizer.step()
        dist.barrier()
assert not hasattr(dist.Work.wait, "__wrapped__"), "torch's own is back"
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "job.py").write_text(JOB)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "job.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[:3000]
    return folder


@pytest.mark.parametrize("job", ["ddp", "compressed", "fsdp", "by_hand"])
def test_the_rank_that_waits_is_known_by_its_collectives(jobs: Path, job: str) -> None:
    rows = Trace(jobs / job).table("steps", columns=["step", "collective_ns", "backward_ns"]).to_pandas()
    medians = rows[rows["step"] >= 3].groupby("rank").median() / 1e6
    waited, backward = medians["collective_ns"], medians["backward_ns"]
    assert waited[0] > 30, "rank 0 waits for most of the 40 ms that rank 1 sleeps"
    assert waited[1] < waited[0] / 2
    assert backward[1] >= 40
    assert (backward[0] > 30) == (job != "by_hand"), "it waits in its backward pass, or after it"


def test_a_rank_that_is_slow_in_its_backward_pass_alone_is_named(jobs: Path) -> None:
    settings = ["StragglerRank.seconds=0.3", "StragglerRank.steps=10"]
    settings += [setting.replace("StragglerRank", "CommunicationBound") for setting in settings]
    analysis = analyze(Trace(jobs / "ddp"), configure(["StragglerRank", "CommunicationBound"], settings))
    straggler, bound = sorted(analysis.findings, key=lambda finding: finding.rule, reverse=True)
    assert (straggler.rank, straggler.evidence["phase"]) == (1, "backward")
    assert (bound.rank, bound.evidence["cause"]) == (1, "straggler")
    (story,) = diagnose(analysis.findings)
    assert story.cause is straggler, "one story, told once"


# -- the rule, on made-up times: shares of the step of many jobs -----------------------------------------

STEPS = 400
MS = 1_000_000


def judged(run: Path, waited: Any, *, period: float = 100.0, on_device: int = 0) -> list[Finding]:
    """A job whose ranks wait that many ms of every step; float [steps, ranks].

    Of every so many steps their devices do, and tell it, and their hosts hardly do.
    """
    for rank in range(waited.shape[1]):
        writer = TraceWriter(run, rank=rank, run_info={"world_size": waited.shape[1], "start_ns": 10**18})
        for step in range(STEPS):
            now = 10**18 + int(step * period * MS)
            backward = int((60 + 0.4 * waited[step, rank]) * MS)
            timing = {"data_ns": 5 * MS, "forward_ns": 20 * MS, "backward_ns": backward}
            timing |= {"optimizer_ns": 5 * MS, "duration_ns": int(period * MS)}
            timing["collective_ns"] = int(waited[step, rank] * MS) if not on_device else MS // 10
            if on_device and step % on_device == 0:
                timing["device_collective_ns"] = int(waited[step, rank] * MS)
            writer.submit(StepRecord(step, "TRAIN", step, now, timing=timing))
        writer.close("finished", last_step=STEPS)
    (result,) = analyze(Trace(run), configure(["CommunicationBound"])).results
    assert result.coverage.decided
    return result.findings


def test_a_slow_network_a_slow_rank_and_turns_are_told_apart(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = random.uniform(0, 3, (STEPS, 4))
    (network,) = judged(tmp_path / "network", 55 + noise)
    assert network.evidence["cause"] == "transfer"
    assert network.value == pytest.approx(0.56, abs=0.02) and "it is the transfer" in network.message
    slow = 55 + noise
    slow[:, 2] = 2
    (straggler,) = judged(tmp_path / "slow", slow)
    assert straggler.evidence["cause"] == "straggler" and straggler.rank == 2
    assert "wait for rank 2, the last in 100 %" in straggler.message
    turns = 60 + noise
    turns[np.arange(STEPS), random.integers(0, 4, STEPS)] = 2
    (unequal,) = judged(tmp_path / "turns", turns)
    assert unequal.evidence["cause"] == "turns" and "equal cost" in unequal.suggestion
    (nccl,) = judged(tmp_path / "nccl", slow, on_device=4)
    assert nccl.evidence["cause"] == "straggler" and nccl.rank == 2
    (alone,) = judged(tmp_path / "alone", 55 + noise[:, :1])
    assert alone.evidence["cause"] == "unknown" and "ranks='all'" in alone.suggestion


def test_healthy_jobs_are_quiet(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for number, ranks in enumerate((1, 2, 4, 8)):
        waited = random.uniform(5, 30, (STEPS, ranks))  # noisy neighbours, an ordinary network
        waited[::50] += 60  # a pause now and then
        waited[200:240, 1:] = 95  # rank 0 evaluates alone
        assert not judged(tmp_path / f"run{number}", waited, on_device=4 * (number % 2))
