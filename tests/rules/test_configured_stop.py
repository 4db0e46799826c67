"""Rules whose own configuration says that they stop the job, and rules beside them that do not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepwatch.probe import TrainingStopped
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.configuration import rule_specs
from stepwatch.rules.errors import RuleError
from tests.rules.sagemaker_runs import train

ACTION = r"[{\"training_job_prefix\": \"my-job\", \"name\": \"stoptraining\"}]"


def request(folder: Path, *, stop_at: int, action: str = ACTION) -> Path:
    """Two rules that fire: the first at once, the second, which stops the job, later."""
    quiet = {"rule_to_invoke": "TensorVariance", "collection_names": "weights", "max_threshold": "0"}
    stopping = {**quiet, "start_step": str(stop_at), "action_json": action}
    rules = [
        {"RuleConfigurationName": name, "RuleParameters": parameters}
        for name, parameters in (("Quiet", quiet), ("Stopping", stopping))
    ]
    path = folder / "request.json"
    path.write_text(json.dumps({"DebugRuleConfigurations": rules}))
    return path


def stops(run: Path) -> dict[str, list[str]]:
    return {row["rule"]: [each["action"] for each in row["actions"]] for row in Trace(run).findings()}


def test_the_hook_stops_for_the_rule_that_says_so(tmp_path: Path) -> None:
    rules = request(tmp_path, stop_at=5)
    with pytest.raises(TrainingStopped) as stopped:
        train(tmp_path / "run", steps=100_000, rules=str(rules))
    assert "Stopping" in stopped.value.reason and stopped.value.step > 5
    assert stops(tmp_path / "run") == {"Quiet": [], "Stopping": ["stop"]}


STANDS_STILL = """
import sys, time, torch
from stepwatch.probe import Hook
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with Hook(sys.argv[1], model=model, optimizer=optimizer, system_interval=0):
    for step in range(3):
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    print("waits", flush=True)
    time.sleep(600)
"""


def test_a_watcher_stops_a_job_that_stands_still(tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    parameters = {"rule_to_invoke": "StalledTrainingRule", "threshold": "2", "stop_training_on_fire": "True"}
    rules.write_text(json.dumps([{"RuleConfigurationName": "Stalled", "RuleParameters": parameters}]))
    run = tmp_path / "run"
    job = subprocess.Popen([sys.executable, "-c", STANDS_STILL, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert job.stdout is not None and job.stdout.readline() == "waits\n"
        command = ["watch", str(run), "--rules", str(rules), "--once", "--answer", "0.5", "--state", str(tmp_path)]
        watched = subprocess.run(
            [sys.executable, "-m", "stepwatch.cli", *command], capture_output=True, text=True, timeout=240
        )
        assert watched.returncode == 1, watched.stderr
        assert job.wait(120) in (-signal.SIGTERM, 128 + signal.SIGTERM, 1)
    finally:
        if job.poll() is None:
            os.kill(job.pid, signal.SIGKILL)
    assert stops(run) == {"Stalled": ["stop"]}


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (ACTION, True),
        (ACTION.replace("\\", ""), True),
        ('{"name": "StopTraining"}', True),
        ([{"name": "stoptraining"}], True),
        ('[{"endpoint": "a@b.org", "name": "email"}]', False),
        (None, False),
    ],
)
def test_action_strings(action: Any, expected: bool) -> None:
    parameters = {"rule_to_invoke": "VanishingGradient", **({"action_json": action} if action else {})}
    (spec,) = rule_specs([{"RuleConfigurationName": "Mine", "RuleParameters": parameters}])
    assert spec.stops is expected


def test_an_action_string_that_is_none_is_named() -> None:
    parameters = {"rule_to_invoke": "VanishingGradient", "action_json": "__import__('os')"}
    with pytest.raises(RuleError, match="Mine: the actions are"):
        rule_specs([{"RuleConfigurationName": "Mine", "RuleParameters": parameters}])
