"""What SageMaker's action strings ask for: carried out in the job, beside it, and by a script that invokes a rule."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.sns import sns_backends

from stepwatch.probe import TrainingStopped
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.configuration import rule_specs
from stepwatch.rules.errors import RuleError
from stepwatch.rules.service.actions import Wanted, parse_actions
from stepwatch.rules.smdebug import install
from stepwatch.rules.trial import create_trial
from tests.rules.sagemaker_runs import train

ALL = [
    {"training_job_prefix": "Job-7", "name": "StopTraining"},
    {"endpoint": "Ada.L+1@mail.Example.org", "name": "email"},
    {"endpoint": "+15551234567", "name": "sms"},
]
WANTED = Wanted(True, "Job-7", (("email", "Ada.L+1@mail.Example.org"), ("sms", "+15551234567")))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (json.dumps(ALL), WANTED),
        (json.dumps(ALL).replace('"', '\\"'), WANTED),
        (ALL, WANTED),
        ('{"name": "stoptraining", "training_job_prefix": "a"}', Wanted(True, "a")),
        ('{"NAME": "SMS", "Endpoint": "+1"}', Wanted(tell=(("sms", "+1"),))),
        ('[{"name": "pager"}, {"name": "email"}, {"endpoint": "x"}]', Wanted()),
        ("", Wanted()),
        (None, Wanted()),
    ],
)
def test_what_a_string_asks_for(text: Any, wanted: Wanted) -> None:
    assert parse_actions(text, "Tail") == wanted


@pytest.mark.parametrize("text", ["stop", "[1]", '{"name": '])
def test_a_string_that_is_none(text: str) -> None:
    with pytest.raises(RuleError, match="Tail: the actions are"):
        parse_actions(text, "Tail")


def published() -> list[tuple[str, dict[str, Any]]]:
    """Subject and attributes of all that was sent by SNS."""
    topics = sns_backends[DEFAULT_ACCOUNT_ID]["us-east-1"].topics.values()
    assert {topic.name for topic in topics} <= {"SMDebugRules"}
    return [(entry[2], entry[3]) for topic in topics for entry in topic.sent_notifications]


@pytest.fixture
def no_messages(credentials: str) -> None:
    sns_backends[DEFAULT_ACCOUNT_ID]["us-east-1"].topics.clear()


def rules(action: Any) -> list[dict[str, Any]]:
    parameters = {"rule_to_invoke": "TensorVariance", "collection_names": "weights", "max_threshold": "0"}
    return [{"RuleConfigurationName": "Wide", "RuleParameters": {**parameters, "action_json": json.dumps(action)}}]


@pytest.mark.usefixtures("no_messages")
def test_a_job_tells_and_stops_by_its_rules_configuration(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"DebugRuleConfigurations": rules(ALL)}))
    with pytest.raises(TrainingStopped):
        train(tmp_path / "run", steps=100_000, rules=str(path))
    (row,) = Trace(tmp_path / "run").findings()
    assert {each["action"].split("-")[0]: each["outcome"] for each in row["actions"]} == {"stop": "done", "sns": "done"}
    sent = published()
    assert [subject for subject, _ in sent] == ["SMDebugRule:Wide fired"] * 2
    endpoints = sorted((name, value["Value"]) for _, attributes in sent for name, value in attributes.items())
    assert endpoints == [("email", "Ada.L+1@mail.Example.org"), ("phone_num", "+15551234567")]


def test_an_endpoint_that_is_none_is_refused(tmp_path: Path, credentials: str) -> None:
    (spec,) = rule_specs(rules({"name": "sms", "endpoint": "nobody"}))
    assert spec.tell == (("sms", "nobody"),)
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"DebugRuleConfigurations": rules({"name": "sms", "endpoint": "nobody"})}))
    with pytest.raises(ValueError, match=r"sns-sms:nobody: expected \+NUMBER"):
        train(tmp_path / "run", steps=2, rules=str(path))


@pytest.mark.usefixtures("no_messages")
def test_a_script_that_invokes_a_rule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    install()
    from smdebug.exceptions import RuleEvaluationConditionMet
    from smdebug.rules.action import Actions
    from smdebug.rules.rule import Rule

    class Always(Rule):  # type: ignore[misc]
        def invoke_at_step(self, step: int) -> bool:
            return True

    trial = create_trial(train(tmp_path / "run", steps=3))
    actions = [{"name": "email", "endpoint": "a@b.org"}, {"name": "stoptraining", "training_job_prefix": "none-such"}]
    with caplog.at_level(logging.WARNING, "stepwatch"), pytest.raises(RuleEvaluationConditionMet):
        Always(trial, action_str=json.dumps(actions)).invoke(1)
    assert [subject for subject, _ in published()] == ["SMDebugRule:Always fired"]
    assert "none-such: not running" in caplog.text
    Actions("{", "Always").invoke("")  # logged, as smdebug does
    assert "the actions are" in caplog.text


def test_the_job_that_is_stopped_is_the_only_one_of_that_name(credentials: str) -> None:
    from stepwatch.rules.sidecar.schedulers import SchedulerError, stop_training_job

    assert boto3.client("sagemaker").list_training_jobs(StatusEquals="InProgress")["TrainingJobSummaries"] == []
    with pytest.raises(SchedulerError, match="not running"):
        stop_training_job("job")
