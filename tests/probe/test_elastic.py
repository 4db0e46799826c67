"""A job that torchrun starts again after one of its ranks was killed: the trace goes on as a second attempt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.replay import analyze

JOB = """
import os, signal, time
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace

torch.set_num_threads(1)
rank, restarts = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
# Each attempt meets at a place of its own: gloo may find a dead process's address in the agent's store.
dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/meeting-{restarts}", rank=rank, world_size=2)
torch.manual_seed(0)
model = DistributedDataParallel(nn.Linear(4, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
start = 0
if os.path.exists("checkpoint.pt"):
    saved = torch.load("checkpoint.pt")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    start = saved["step"] + 1
loss_fn = nn.MSELoss()
hook = Hook("run", model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=SaveConfig(save_interval=1))
for step in range(start, 24):
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss_fn(model(torch.randn(8, 4)), torch.zeros(8, 2)).backward()
    optimizer.step()
    if step == 9 and rank == 0:
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(saved, "checkpoint.tmp")
        os.replace("checkpoint.tmp", "checkpoint.pt")
    if step == 15 and restarts == 0 and rank == 1:
        def flushed(rank):
            return Trace("run").table("steps", columns=["step"], ranks=[rank]).num_rows
        while min(flushed(0), flushed(1)) < 10:  # what was not is lost
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
hook.close()
dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="torchrun's agent forks")
def test_a_killed_rank_makes_a_second_attempt(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = subprocess.run([*command, "job.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    trace = Trace(tmp_path / "run")
    assert trace.ranks == [0, 1]
    for rank in trace.ranks:
        entries = trace.attempts(rank).entries
        assert [entry["start_step"] for entry in entries] == [0, 10], "from the checkpoint on"
        end = trace.end(rank)
        assert end is not None and end.status == "finished"
        rows = trace.table("steps", ranks=[rank])
        assert rows["step"].to_pylist() == list(range(24)), "every step once"
        assert rows["attempt"].to_pylist() == [0] * 10 + [1] * 14
        losses = trace.table("scalars", ranks=[rank], names=["MSELoss_output_0"])
        assert losses["step"].to_pylist() == list(range(24))
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["run_id"]
    assert run_id == trace.info.run_id and trace.status() == "finished"
    analysis = analyze(trace, configure(None))
    assert analysis.findings == [] and analysis.warnings == [], "a restart is no issue of the training"
