"""Replicas that drift apart and replicas that do not, under a real torchrun with two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import TensorInfo
from stepwatch.rules.catalogue import configure
from stepwatch.rules.engine import Engine
from stepwatch.rules.finding import Finding, RuleResult, Status
from stepwatch.rules.replay import LiveAnalysis, analyze
from stepwatch.rules.step import Stats, Step, TensorSet

JOB = """
import sys
import torch
from torch import nn
from stepwatch.probe import Hook, SaveConfig

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
for kind in sys.argv[1:]:
    torch.manual_seed(rank if kind == "ensemble" else 0)
    inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    model = inner if kind == "ensemble" else nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(rank)
    called = inner if kind == "bypassed" else model
    with Hook(kind, model=inner, optimizer=optimizer, save_config=SaveConfig(save_interval=2), system_interval=0):
        for step in range(160):
            optimizer.zero_grad()
            x = torch.randn(16, 8, generator=generator)
            nn.functional.cross_entropy(called(x), (x[:, 0] > 0).long()).backward()
            optimizer.step()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, RuleResult]]:
    folder = tmp_path_factory.mktemp("replicas")
    (folder / "job.py").write_text(JOB)
    kinds = ("healthy", "bypassed", "ensemble")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "job.py", *kinds]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    results = {}
    for kind in kinds:
        (result,) = analyze(Trace(folder / kind), configure(["ReplicaDrift"])).results
        results[kind] = folder / kind, result
    return results


def test_a_model_that_is_called_past_its_wrapper_drifts(judged) -> None:
    run, result = judged["bypassed"]
    assert result.status is Status.ISSUES_FOUND
    (finding,) = result.findings
    assert (finding.rank, finding.first_step) == (1, 2)
    assert "0.weight" in " ".join(finding.tensors)
    assert "their gradients differed before: they are not averaged" in finding.message
    live = LiveAnalysis(Trace(run), configure(["ReplicaDrift"]))
    assert [each.id for each in live.conclude()] == [finding.id]


@pytest.mark.parametrize("kind", ["healthy", "ensemble"])
def test_replicas_that_agree_and_models_that_never_did_are_no_finding(judged, kind: str) -> None:
    _, result = judged[kind]
    assert result.status is Status.NO_ISSUES_FOUND
    assert result.coverage.decided


def ranks_in(order: list[int], apart: range, steps: int = 120) -> list[Finding]:
    """Two ranks with one weight that differs at some steps, and one gradient that never does, fed in an order."""
    infos = {
        name: TensorInfo(name, (4, 4), "float32", (collection,))
        for name, collection in (("Net_fc.weight", "weights"), ("gradient/Net_fc.weight", "gradients"))
    }
    sets = [TensorSet(list(infos), infos.__getitem__) for _ in range(2)]
    engine = Engine(configure(["ReplicaDrift"]))
    at = [0, 0]
    found: list[Finding] = []
    for rank in [*order, *[0] * steps, *[1] * steps]:
        step = at[rank]
        if step == steps:
            continue
        at[rank] += 1
        matrix = np.ones((2, 11)) * [[1.01 if rank and step in apart else 1.0], [1.0]]
        found += engine.feed(Step(rank, step, "TRAIN", step, 0, stats=Stats(sets[rank], matrix)))
    return found


def test_the_order_in_which_ranks_are_heard_changes_nothing() -> None:
    orders = [[], [1] * 90, [0, 1] * 60, [1, 1, 0] * 30]
    found = [ranks_in(order, range(20, 120)) for order in orders]
    assert all([each.id for each in findings] == [found[0][0].id] for findings in found)
    assert (found[0][0].first_step, found[0][0].last_step) == (20, 70)
    assert "their gradients were the same before" in found[0][0].message


def test_ranks_that_meet_again_are_no_finding() -> None:
    assert ranks_in([], range(20, 60)) == []
