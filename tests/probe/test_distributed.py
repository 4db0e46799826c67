"""Jobs of several ranks, really started with torchrun on gloo: what is recorded equals what is computed by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepwatch.probe.store.reader import Trace

HEAD = """
import json, sys
import torch
import torch.distributed as dist
from torch import nn
from stepwatch.probe import Hook, SaveConfig
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
expected = []

def expect(step, name, tensor):
    tensor = tensor.detach().double()
    expected.append([step, name, tensor.norm().item(), tensor.mean().item(), tensor.std(unbiased=False).item()])

def batch(seed):
    torch.manual_seed(seed)
    return torch.randn(4, 5), torch.randint(3, (4,))

def hooked(model, optimizer):
    return Hook("run", model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=SaveConfig(save_interval=1))

loss_fn = nn.CrossEntropyLoss()
"""
TAIL = """
hook.close()
with open(f"expected-{rank}.json", "w") as file:
    json.dump(expected, file)
dist.destroy_process_group()
"""


def torchrun(folder: Path, body: str, ranks: int) -> tuple[Trace, list[list[Any]]]:
    (folder / "job.py").write_text(HEAD + body + TAIL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "job.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return Trace(folder / "run"), json.loads((folder / "expected-0.json").read_text())


def check(rows: Any, expected: list[list[Any]]) -> None:
    by_key = rows.set_index(["step", "name"])
    assert expected
    for step, name, l2, mean, std in expected:
        row = by_key.loc[(step, name)]
        assert row["l2"] == pytest.approx(l2, rel=1e-5)
        assert row["mean"] == pytest.approx(mean, rel=1e-4, abs=1e-7)
        assert row["std"] == pytest.approx(std, rel=1e-5)


FSDP = """
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
mesh = init_device_mesh("cpu", MESH, mesh_dim_names=("replicate", "shard")[-len(MESH):])
for layer in (model[0], model[2]):
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
hook = hooked(model, optimizer)
for step in range(3):
    x, y = batch(100 * step + rank)
    optimizer.zero_grad()
    loss_fn(model(x), y).backward()
    for name, parameter in model.named_parameters():
        expect(step, f"Sequential_{name}", parameter.full_tensor())
        expect(step, f"gradient/Sequential_{name}", parameter.grad.full_tensor())
    optimizer.step()
"""


@pytest.mark.parametrize(("ranks", "mesh"), [(2, "(2,)"), (4, "(2, 2)")], ids=["sharded", "sharded and replicated"])
def test_shards_of_fully_sharded_parameters_are_shown_as_the_whole(tmp_path: Path, ranks: int, mesh: str) -> None:
    trace, expected = torchrun(tmp_path, FSDP.replace("MESH", mesh), ranks)
    info = trace.tensors()["gradient/Sequential_0.weight"]
    assert info.shape == (7, 5) and info.shards == (0, 1)
    assert info.module_type == "Linear"
    whole = trace.whole_stats(names=[name for _, name, *_ in expected]).to_pandas()
    assert (whole["rank"] == 0).all()
    check(whole, expected)
    # seven rows over two ranks: each has recorded its own part alone
    parts = trace.table("stats", names=["Sequential_0.weight"], steps=(0, 1)).to_pandas().set_index("rank")
    assert parts.loc[[0, 1], "numel"].tolist() == [20, 15]


def test_replicas_record_the_gradient_averaged_over_ranks_and_micro_batches(tmp_path: Path) -> None:
    body = """
import contextlib
replicas = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(replicas.parameters(), lr=0.1)
hook = hooked(replicas, optimizer)
for step in range(3):
    optimizer.zero_grad()
    for part in range(3):
        x, y = batch(100 * step + 10 * part + rank)
        with replicas.no_sync() if part < 2 else contextlib.nullcontext():
            loss_fn(replicas(x), y).backward()
    for name, parameter in model.named_parameters():
        expect(step, f"gradient/Sequential_{name}", parameter.grad)
    optimizer.step()
"""
    trace, expected = torchrun(tmp_path, body, 2)
    rows = trace.table("stats", names=[name for _, name, *_ in expected]).to_pandas()
    for rank in (0, 1):
        check(rows[rows["rank"] == rank], expected)
    assert all(info.shards == () for info in trace.tensors().values())
    losses = trace.table("scalars", names=["CrossEntropyLoss_output_0"]).to_pandas()
    assert len(losses) == 6  # one a step and rank, the mean of its micro-batches


def test_stages_of_a_pipeline_are_different_modules_of_one_run(tmp_path: Path) -> None:
    body = """
stage = nn.Sequential(nn.Linear(5, 7), nn.ReLU()) if rank == 0 else nn.Linear(7, 3)
optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
hook = Hook("run", model={f"stage{rank}": stage}, optimizer=optimizer, save_config=SaveConfig(save_interval=1))
for step in range(2):
    optimizer.zero_grad()
    x, y = batch(step)
    if rank == 0:
        hidden = stage(x)
        dist.send(hidden.detach(), 1)
        gradient = torch.empty_like(hidden)
        dist.recv(gradient, 1)
        hidden.backward(gradient)
    else:
        hidden = torch.empty(4, 7)
        dist.recv(hidden, 0)
        hidden.requires_grad_()
        loss_fn(stage(hidden), y).backward()
        dist.send(hidden.grad, 0)
    optimizer.step()
"""
    trace, _ = torchrun(tmp_path, body.replace("optimizer.step()", "expect(step, 'x', x); optimizer.step()"), 2)
    names = {
        rank: set(trace.table("stats", columns=["name"], ranks=[rank])["name"].to_pylist()) for rank in trace.ranks
    }
    assert "gradient/stage0_0.weight" in names[0] and "gradient/stage1_weight" in names[1]
    assert not names[0] & names[1]
    assert names[0] | names[1] <= set(trace.tensors())
