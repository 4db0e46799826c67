"""Jobs as SageMaker's service configures them: by request, by the job's name, in the container itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import boto3
import pytest

from stepwatch.probe.sagemaker import container_configuration, request_configuration
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.errors import RuleError
from stepwatch.rules.service.request import read_request
from stepwatch.rules.trial import create_trial
from tests.forked import stepwatch
from tests.rules.sagemaker_runs import train

SCRIPT = """
import sys
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
loss_fn = torch.nn.MSELoss()
for step in range(int(sys.argv[1])):
    loss = loss_fn(model(torch.randn(8, 4)), torch.zeros(8, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("trained")
"""

OWN_RULE = """
from smdebug.rules.rule import Rule

class Always(Rule):
    def invoke_at_step(self, step):
        return True
"""

HOOK_CONFIG = {
    "S3OutputPath": "s3://bucket/job",
    "HookParameters": {"save_interval": "4"},
    "CollectionConfigurations": [
        {"CollectionName": "gradients"},
        {"CollectionName": "heads", "CollectionParameters": {"include_regex": "^Sequential_2", "save_interval": "2"}},
    ],
}


def rule(name: str, invoked: str, **parameters: str) -> dict[str, Any]:
    return {
        "RuleConfigurationName": name,
        "RuleEvaluatorImage": "895741380848.dkr.ecr.us-west-2.amazonaws.com/sagemaker-debugger-rules:latest",
        "RuleParameters": {"rule_to_invoke": invoked, **parameters},
    }


REQUEST: dict[str, Any] = {
    "TrainingJobName": "job-12",
    "DebugHookConfig": HOOK_CONFIG,
    "DebugRuleConfigurations": [
        rule("Tail", "VanishingGradient", threshold="20.0"),
        rule("Own", "Always", source_s3_uri="s3://rules/mine/always.py"),
    ],
    "ProfilerConfig": {"S3OutputPath": "s3://bucket/profile", "ProfilingIntervalInMilliseconds": 100},
    "ProfilerRuleConfigurations": [rule("Idle", "LowGPUUtilization", threshold_p95="60", patience="2")],
}


@pytest.fixture
def job(credentials: str) -> str:
    """A training job that the service knows, with a rule of its own in S3."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="rules")
    s3.put_object(Bucket="rules", Key="mine/always.py", Body=OWN_RULE.encode())
    boto3.client("sagemaker").create_training_job(
        **{key: REQUEST[key] for key in ("TrainingJobName", "DebugHookConfig", "DebugRuleConfigurations")},
        AlgorithmSpecification={"TrainingImage": "image", "TrainingInputMode": "File"},
        RoleArn="arn:aws:iam::123456789012:role/training",
        OutputDataConfig={"S3OutputPath": "s3://bucket/out"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    return str(REQUEST["TrainingJobName"])


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_rules_of_a_job_that_the_service_knows(job: str, tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=5)
    done = stepwatch("analyze", run, "--rules", f"sagemaker://{job}", "--json")
    assert done.returncode == 1, done.stderr
    assert {entry["rule"]: entry["status"] for entry in json.loads(done.stdout)["rules"]} == {
        "Tail": "IssuesFound",
        "Own": "IssuesFound",
    }


@pytest.mark.parametrize(
    ("named", "said"), [("absent", "absent"), ("not a name", "not the name of a training job"), ("", "not the name")]
)
def test_a_job_that_the_service_does_not_know(credentials: str, named: str, said: str) -> None:
    with pytest.raises(RuleError, match=said) as error:
        configure([f"sagemaker://{named}"])
    assert "\n" not in str(error.value)


def test_a_saved_request_records_and_judges(job: str, tmp_path: Path, script: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(REQUEST))
    done = stepwatch("run", "--request", request, "--out", tmp_path / "run", script, "9")
    assert done.returncode == 0 and "trained" in done.stdout, done.stderr
    trace = Trace(tmp_path / "run")
    assert trace.info.job_name == "job-12"
    assert {row["rule"] for row in trace.findings()} == {"Tail", "Own"}
    trial = create_trial(tmp_path / "run")
    assert trial.tensor("Sequential_2.weight").steps() == [0, 2, 4, 6, 8]
    assert trial.tensor("Sequential_2.weight").value(2).shape == (1, 4)
    assert trial.has_tensor("Sequential_0.weight") is False


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"DebugHookConfig": {"HookParameters": {"save_interval": "often"}}}, "DebugHookConfig: HookParameters"),
        ({"DebugHookConfig": {"CollectionConfigurations": [{}]}}, "CollectionName"),
        ({"ProfilerConfig": {"ProfilingIntervalInMilliseconds": 7}}, "ProfilingIntervalInMilliseconds is 7"),
        ({"ProfilerConfig": 7}, "ProfilerConfig is a int"),
    ],
)
def test_a_request_that_cannot_be_used(content: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        request_configuration(content)


def test_a_file_that_is_no_request(tmp_path: Path, script: Path) -> None:
    path = tmp_path / "request.json"
    for text, said in (("[]", "expected an object"), ("{", "is not JSON")):
        path.write_text(text)
        with pytest.raises(RuleError, match=said):
            read_request(str(path))
    done = stepwatch("run", "--request", path, script, "1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


def test_the_interval_of_samples() -> None:
    assert request_configuration(REQUEST)["system_interval"] == 0.1
    assert request_configuration({"ProfilerConfig": {"DisableProfiler": True}}) == {"system_interval": 0}


@pytest.fixture
def container(tmp_path: Path) -> dict[str, str]:
    """The environment of a training container whose files lie below a folder of the test's own."""
    for name, content in {
        "debughookconfig.json": {**HOOK_CONFIG, "LocalPath": str(tmp_path / "tensors")},
        "profilerconfig.json": {"DisableProfiler": "true"},
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    return {
        "TRAINING_JOB_NAME": "job-12",
        "SMDEBUG_CONFIG_FILE_PATH": str(tmp_path / "debughookconfig.json"),
        "SMPROFILER_CONFIG_PATH": str(tmp_path / "profilerconfig.json"),
        "SM_OUTPUT_DIR": str(tmp_path / "output"),
        "SM_OUTPUT_DATA_DIR": str(tmp_path / "output" / "data"),
    }


def test_a_container_configures_a_script_that_knows_nothing(
    container: dict[str, str], tmp_path: Path, script: Path
) -> None:
    done = stepwatch("run", script, "9", cwd=tmp_path, **container)
    assert done.returncode == 0 and "trained" in done.stdout, done.stderr
    trace = Trace(tmp_path / "tensors")
    assert trace.info.job_name == "job-12"
    assert not (tmp_path / "tensors" / "system").exists()
    assert create_trial(tmp_path / "tensors").tensor("Sequential_2.weight").steps() == [0, 2, 4, 6, 8]
    assert not (tmp_path / "output" / "failure").exists()


def test_a_container_configures_a_script_with_smdebugs_hook(container: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    hooked = SCRIPT.replace("import torch\n", "import torch\nimport smdebug.pytorch as smd\n", 1)
    script.write_text(
        hooked.replace("for step", "smd.get_hook(create_if_not_exists=True).register_module(model)\nfor step")
    )
    done = stepwatch("run", script, "5", cwd=tmp_path, **container)
    assert done.returncode == 0 and "trained" in done.stdout, done.stderr
    assert create_trial(tmp_path / "tensors").tensor("Sequential_2.weight").steps() == [0, 2, 4]


def test_without_a_configuration_output_goes_where_it_is_collected(
    container: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in container.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "debughookconfig.json").unlink()
    assert container_configuration()["out_dir"] == str(tmp_path / "output" / "data" / "stepwatch")
    (tmp_path / "debughookconfig.json").write_text("{")
    with pytest.raises(ValueError, match=r"debughookconfig\.json: not valid JSON"):
        container_configuration()


@pytest.mark.parametrize(("on_stop", "status"), [("failure", 1), ("success", 0)])
def test_a_stop_in_a_container(
    container: dict[str, str], tmp_path: Path, script: Path, on_stop: str, status: int
) -> None:
    stopping = rule("Stopping", "ExplodingTensor", action_json='{"name": "stoptraining"}')
    (tmp_path / "rules.json").write_text(json.dumps({"DebugRuleConfigurations": [stopping]}))
    script.write_text(SCRIPT.replace("lr=0.01", "lr=1e30"))
    done = stepwatch(
        *("run", "--rules", tmp_path / "rules.json", script, "1000000"),
        cwd=tmp_path,
        **container,
        STEPWATCH_ON_STOP=on_stop,
    )
    assert done.returncode == status and "trained" not in done.stdout, done.stderr
    assert Trace(tmp_path / "tensors").status() == "stopped"
    failure = tmp_path / "output" / "failure"
    assert failure.exists() is (on_stop == "failure")
    if failure.exists():
        assert failure.read_text().startswith("Stopping: ")


def test_what_a_stop_makes_of_a_container_is_checked_when_the_hook_is_made(
    container: dict[str, str], tmp_path: Path, script: Path
) -> None:
    done = stepwatch("run", script, "3", cwd=tmp_path, **container, STEPWATCH_ON_STOP="maybe")
    assert done.returncode == 2 and "STEPWATCH_ON_STOP is 'maybe'" in done.stderr and "trained" not in done.stdout
