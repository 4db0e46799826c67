"""Evaluation statuses as SageMaker's DescribeTrainingJob has them, of finished and of live runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from tests.rules.sagemaker_runs import train

FIELDS = {"RuleConfigurationName", "RuleEvaluationStatus", "StatusDetails", "LastModifiedTime"}


def sagemaker_rules(path: Path, *rules: tuple[str, str, dict[str, str]]) -> Path:
    entries = [
        {"RuleConfigurationName": name, "RuleParameters": {"rule_to_invoke": rule, **parameters}}
        for name, rule, parameters in rules
    ]
    path.write_text(json.dumps({"DebugRuleConfigurations": entries}))
    return path


def stepwatch(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stepwatch.cli", *arguments]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "exp1", steps=10)


@pytest.fixture
def growing(tmp_path: Path) -> Any:
    writer = TraceWriter(tmp_path / "runs" / "live", run_info={"job_name": "job-7"})
    yield writer
    writer.close("finished")


def train_step(writer: TraceWriter, step: int, loss: float) -> None:
    record = StepRecord(step, "TRAIN", step, 0)
    record.scalars.append(("loss", loss))
    writer.submit(record)
    writer.flush()


def test_of_a_finished_run(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from stepwatch.rules.rule import Rule\nfrom stepwatch.rules.finding import Coverage\n\n\n"
        "class Broken(Rule):\n"
        "    def observe(self, step):\n        raise KeyError('weights')\n\n"
        "    def coverage(self):\n        return Coverage()\n"
    )
    rules = sagemaker_rules(
        tmp_path / "rules.json",
        ("Tail", "VanishingGradient", {"threshold": "20.0", "start_step": "4"}),
        ("Quiet", "ExplodingTensor", {}),
        ("Blind", "DeadRelu", {}),
        ("Machine", "LowGPUUtilization", {}),
    )
    done = subprocess.run(
        stepwatch("analyze", str(run), "--rules", f"{rules},{broken}:Broken", "--format", "sagemaker"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    printed = json.loads(done.stdout)
    assert printed["TrainingJobName"] == "exp1"
    debug = {entry["RuleConfigurationName"]: entry for entry in printed["DebugRuleEvaluationStatuses"]}
    (machine,) = printed["ProfilerRuleEvaluationStatuses"]
    assert list(debug) == ["Tail", "Quiet", "Blind", "Broken"]
    assert debug["Tail"]["RuleEvaluationStatus"] == "IssuesFound"
    assert debug["Tail"]["StatusDetails"] == (
        "RuleEvaluationConditionMet: Evaluation of the rule VanishingGradient at step 4 resulted in the condition being"
        " met\n"
    )
    assert debug["Quiet"]["RuleEvaluationStatus"] == "NoIssuesFound" and "StatusDetails" not in debug["Quiet"]
    assert debug["Broken"]["RuleEvaluationStatus"] == "Error"
    assert debug["Broken"]["StatusDetails"].startswith("ClientError: KeyError")
    for blind in (debug["Blind"], machine):
        assert blind["RuleEvaluationStatus"] == "Stopped" and blind["StatusDetails"]
    for entry in (*debug.values(), machine):
        assert set(entry) <= FIELDS  # nothing that is not true here, as the ARN of an evaluation job
        assert datetime.now(timezone.utc) - datetime.fromisoformat(entry["LastModifiedTime"]) < timedelta(hours=1)


def test_of_several_runs_and_of_what_cannot_be_read(run: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        stepwatch("analyze", str(run), str(tmp_path), str(run.parent), "--rules", "sagemaker", "--format", "sagemaker"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert isinstance(json.loads(done.stdout), list)
    both = subprocess.run(
        stepwatch("analyze", str(run), "--json", "--format", "sagemaker"), capture_output=True, text=True, timeout=60
    )
    assert both.returncode == 2 and "--format sagemaker" in both.stderr


def test_of_a_live_run(growing: TraceWriter, tmp_path: Path) -> None:
    rules = sagemaker_rules(
        tmp_path / "rules.json", ("NaN", "ExplodingTensor", {}), ("Zero", "AllZero", {"tensor_regex": "x"})
    )
    train_step(growing, 0, 1.0)
    watching = subprocess.Popen(
        stepwatch("watch", str(tmp_path / "runs"), "--rules", str(rules), "--format", "sagemaker", "--interval", "0.1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None and watching.stderr is not None

        def statuses() -> list[str]:
            assert watching.stdout is not None
            printed = json.loads(watching.stdout.readline())
            assert printed["TrainingJobName"] == "job-7"
            return [entry["RuleEvaluationStatus"] for entry in printed["DebugRuleEvaluationStatuses"]]

        assert statuses() == ["InProgress", "InProgress"]
        train_step(growing, 1, float("nan"))
        assert statuses() == ["IssuesFound", "InProgress"]
        watching.send_signal(signal.SIGINT)
        assert statuses() == ["IssuesFound", "Stopping"]
        assert statuses() == ["IssuesFound", "Stopped"]
        assert watching.wait(120) == 1
        assert "no longer watching" in watching.stderr.read()
    finally:
        watching.kill()
        watching.wait()


def test_of_a_live_run_that_ends(growing: TraceWriter, tmp_path: Path) -> None:
    rules = sagemaker_rules(tmp_path / "rules.json", ("NaN", "ExplodingTensor", {}))
    train_step(growing, 0, 1.0)
    watching = subprocess.Popen(
        stepwatch(
            *("watch", str(tmp_path / "runs"), "--rules", str(rules)),
            *("--format", "sagemaker", "--interval", "0.1", "--once"),
        ),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        watching.stdout.readline()
        growing.close("finished")
        lines = watching.stdout.read().splitlines()
        assert watching.wait(120) == 0
    finally:
        watching.kill()
        watching.wait()
    assert [json.loads(line)["DebugRuleEvaluationStatuses"][0]["RuleEvaluationStatus"] for line in lines] == [
        "NoIssuesFound"
    ]
