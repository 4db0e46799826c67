"""A job of Ray Train with two workers ends in Ray's way; skipped where Ray is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stepwatch.probe.store.reader import Trace

pytest.importorskip("ray.train")

JOB = """
import json, os, sys, ray, torch
from ray import train
from ray.train.torch import TorchTrainer
from stepwatch.probe.integrations.ray_train import recording

def work(config):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e18)
    rank = train.get_context().get_world_rank()

    def save(step):
        if rank > 0:
            return None
        os.makedirs("saved", exist_ok=True)
        torch.save(model.state_dict(), "saved/model.pt")
        return "saved"

    with recording(config["run"], model=model, optimizer=optimizer, save=save, system_interval=0):
        for step in range(1_000_000):
            optimizer.zero_grad()
            (model(torch.randn(8, 4)) ** 2).mean().backward()
            optimizer.step()
        raise AssertionError("it was not stopped")

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
trainer = TorchTrainer(
    work,
    train_loop_config={"run": sys.argv[1] + "/run"},
    scaling_config=train.ScalingConfig(num_workers=2),
    run_config=train.RunConfig(storage_path=sys.argv[1] + "/ray"),
)
result = trainer.fit()
with result.checkpoint.as_directory() as folder:
    print("RESULT", json.dumps([result.metrics, repr(result.error), os.listdir(folder)]))
ray.shutdown()
"""


def test_a_lost_job_ends_on_all_workers_with_a_checkpoint_of_rays(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", JOB, str(tmp_path)], capture_output=True, text=True, timeout=280)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-2000:]
    metrics, error, files = json.loads(lines[0].removeprefix("RESULT"))
    assert metrics["stepwatch_stopped"].startswith("ExplodingTensor") and error == "None" and "model.pt" in files
    trace = Trace(tmp_path / "run")
    ends = [trace.end(rank) for rank in (0, 1)]
    assert [(end.status, end.last_step) for end in ends if end is not None] == [("stopped", metrics["step"])] * 2
