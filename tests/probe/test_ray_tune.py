"""A trial of Ray Tune that is lost ends, and the others go on; skipped where Ray is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stepwatch.probe.store.discovery import runs_below
from stepwatch.probe.store.reader import Trace

pytest.importorskip("ray.tune")

STUDY = """
import json, sys, ray, torch
from ray import tune
from stepwatch.probe.integrations.ray_tune import pruning

def train(config):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"])
    with pruning(config["runs"], model=model, optimizer=optimizer):
        for step in range(30):
            optimizer.zero_grad()
            loss = (model(torch.randn(8, 4)) ** 2).mean()
            loss.backward()
            optimizer.step()
            tune.report({"loss": float(loss.detach()), "step": step})

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
results = tune.Tuner(
    train,
    param_space={"lr": tune.grid_search([0.01, 1e6]), "runs": sys.argv[1] + "/runs"},
    run_config=tune.RunConfig(storage_path=sys.argv[1] + "/ray", verbose=0),
).fit()
print("RESULT", json.dumps({str(r.config["lr"]): [r.metrics["step"], repr(r.error)] for r in results}))
ray.shutdown()
"""


def test_a_trial_that_is_lost_ends_and_the_others_go_on(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STUDY, str(tmp_path)], capture_output=True, text=True, timeout=280)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    results = json.loads(line.removeprefix("RESULT"))
    assert results["0.01"] == [29, "None"]
    step, error = results["1000000.0"]
    assert step < 29 and error == "None"
    traces = [Trace(run) for run in runs_below(tmp_path / "runs")]
    assert sorted(trace.status() for trace in traces) == ["finished", "stopped"]


def test_it_has_to_be_called_in_a_trial() -> None:
    from stepwatch.probe.integrations.ray_tune import pruning

    with pytest.raises(ValueError, match="this is no trial of Ray Tune"), pruning("/tmp/runs"):
        pass
