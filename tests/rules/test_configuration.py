"""Rules chosen and configured: by set, by file, in SageMaker's JSON, in Python; wrong input named in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepwatch.rules.catalogue import configure
from stepwatch.rules.configuration import rule_specs
from stepwatch.rules.errors import RuleError
from tests.rules.sagemaker_runs import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "run", steps=20)


def analyze(run: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, verdicts by rule, and stderr of ``stepwatch analyze --json``."""
    done = subprocess.run(
        [sys.executable, "-m", "stepwatch.cli", "analyze", str(run), "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    rules = json.loads(done.stdout)["rules"] if done.stdout else []
    return done.returncode, {entry["rule"]: entry for entry in rules}, done.stderr


def sagemaker(name: str, rule: str, **parameters: str) -> dict[str, Any]:
    return {
        "RuleConfigurationName": name,
        "RuleEvaluatorImage": "895741380848.dkr.ecr.us-west-2.amazonaws.com/sagemaker-debugger-rules:latest",
        "RuleParameters": {"rule_to_invoke": rule, **parameters},
    }


def test_sets_are_chosen_by_name() -> None:
    assert "sagemaker" not in {spec.rule.__module__.split(".")[2] for spec in configure(None)}
    assert {spec.rule.__module__.split(".")[2] for spec in configure(["sagemaker"])} == {"sagemaker"}
    (ours,), (theirs,) = configure(["VanishingGradient"]), configure(["sagemaker.vanishinggradient"])
    assert ours.rule is not theirs.rule and ours.name == theirs.name == "VanishingGradient"
    both = configure(["recommended,sagemaker"], ["sagemaker.VanishingGradient.threshold=0.5", "DeadRelu.share=0.8"])
    by_name = {spec.name: spec for spec in both}
    assert len(by_name) == len(both)
    assert by_name["sagemaker.VanishingGradient"].parameters == {"threshold": 0.5}
    assert by_name["DeadRelu"].parameters == {"share": 0.8}


def test_both_sets_over_a_run(run: Path) -> None:
    status, rules, _ = analyze(
        run, "--rules", "recommended,sagemaker", "--set", "sagemaker.VanishingGradient.threshold=9"
    )
    assert status == 1
    assert rules["sagemaker.VanishingGradient"]["status"] == "IssuesFound"
    assert rules["sagemaker.VanishingGradient"]["findings"][0]["rule"] == "sagemaker.VanishingGradient"
    assert rules["VanishingGradient"]["status"] != "IssuesFound"


def test_a_request_of_sagemaker_as_it_stands(run: Path, tmp_path: Path) -> None:
    request = {
        "TrainingJobName": "job",
        "DebugHookConfig": {
            "S3OutputPath": "s3://bucket/path",
            "CollectionConfigurations": [
                {
                    "CollectionName": "heads",
                    "CollectionParameters": {"include_regex": "^Net_fc3", "save_interval": "500"},
                }
            ],
        },
        "DebugRuleConfigurations": [
            sagemaker("Vanishing", "VanishingGradient", threshold="20.0", start_step="3", end_step="9"),
            sagemaker("Quiet", "VanishingGradient", threshold="20.0", end_step="0"),
            sagemaker("Heads", "TensorVariance", collection_names="heads", max_threshold="0.0000001"),
            sagemaker("AllZero", "AllZero", tensor_regex="^Net_fc.*weight$", threshold="100"),
        ],
    }
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request))
    status, rules, _ = analyze(run, "--rules", str(path))
    assert status == 1
    assert list(rules) == ["Vanishing", "Quiet", "Heads", "AllZero"]
    (finding,) = rules["Vanishing"]["findings"]
    assert finding["first_step"] == 3 and finding["rule"] == "Vanishing"
    assert rules["Quiet"]["status"] == "Stopped"
    assert set(rules["Heads"]["findings"][0]["tensors"]) == {"Net_fc3.weight", "Net_fc3.bias"}
    assert rules["AllZero"]["status"] == "NoIssuesFound"


OURS = {
    "yaml": """
rules:
  - sagemaker.ExplodingTensor
  - rule: sagemaker.VanishingGradient
    name: Tail
    parameters: {threshold: 2e1}
    start_step: 5
  - rule: DeadRelu
    parameters: {share: 0.5}
""",
    "toml": """
[[rules]]
rule = "sagemaker.ExplodingTensor"
[[rules]]
rule = "sagemaker.VanishingGradient"
name = "Tail"
start_step = 5
parameters = {threshold = 20.0}
[[rules]]
rule = "DeadRelu"
parameters = {share = 0.5}
""",
}


@pytest.mark.parametrize("kind", OURS)
def test_a_file_in_our_own_form(kind: str, run: Path, tmp_path: Path) -> None:
    path = tmp_path / f"rules.{kind}"
    path.write_text(OURS[kind])
    status, rules, _ = analyze(run, "--rules", str(path), "--set", "Tail.threshold=30")
    assert status == 1 and list(rules) == ["ExplodingTensor", "Tail", "DeadRelu"]
    (finding,) = rules["Tail"]["findings"]
    assert finding["first_step"] == 5 and finding["threshold"] == 30


def test_a_rule_of_the_users_own_beside_the_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from stepwatch.rules.trial_rule import TrialRule\n"
        "class Own(TrialRule):\n"
        "    '''Always.'''\n"
        "    def __init__(self, *, limit: float = 1.0) -> None:\n"
        "        super().__init__()\n"
        "        self.limit = limit\n"
        "    def invoke_at_step(self, step: int) -> bool:\n"
        "        return step > self.limit\n"
    )
    custom = {
        "RuleConfigurationName": "Mine",
        "RuleParameters": {"source_s3_uri": "own.py", "rule_to_invoke": "Own", "limit": "7"},
    }
    path = tmp_path / "rules.json"
    path.write_text(json.dumps([custom]))
    _, rules, _ = analyze(run, "--rules", str(path))
    assert rules["Mine"]["findings"][0]["first_step"] == 8


def test_limits_as_early_versions_had_them() -> None:
    (spec,) = rule_specs(entry(rule_to_invoke="SaturatedActivation", threshold_tanh="(-5, 5.5)"))
    assert spec.parameters == {"threshold_tanh_min": -5.0, "threshold_tanh_max": 5.5}


def entry(**parameters: Any) -> list[dict[str, Any]]:
    return [{"RuleConfigurationName": "Mine", "RuleParameters": parameters}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (entry(rule_to_invoke="VanishingGradient", treshold="1"), "no parameter 'treshold'; it has: threshold"),
        (entry(rule_to_invoke="VanishingGradient", threshold="low"), "threshold is 'low'; expected a number"),
        (entry(rule_to_invoke="VanishingGradient", threshold="-1"), "threshold is -1.0; expected a number above 0"),
        (entry(rule_to_invoke="AllZero", threshold="101"), "expected a percentage from 0 to 100"),
        (entry(rule_to_invoke="ExplodingTensor", only_nan="yes"), "only_nan is 'yes'; expected true or false"),
        (entry(rule_to_invoke="ExplodingTensor", tensor_regex="a("), "'a(' is not a regular expression"),
        (entry(rule_to_invoke="LossNotDecreasing", mode="TEST"), "expected TRAIN, EVAL, GLOBAL or None"),
        (entry(rule_to_invoke="AllZero", start_step="soon"), "start_step is 'soon'; expected a whole number"),
        (entry(rule_to_invoke="VanishingGradients"), "expected one of VanishingGradient, ExplodingTensor"),
        (entry(threshold="1"), "Mine: RuleParameters have no rule_to_invoke"),
        (entry(rule_to_invoke="A", source_s3_uri="s3://bucket/own"), "not a Python file; expected s3://BUCKET/PATH.py"),
        ([{"rule": "recommended"}], "'recommended' is a set of rules; expected one rule"),
        ([{"rule": "DeadRelu", "treshold": 1}], "rule 1 has 'treshold'; expected rule, name, parameters"),
        ([{"name": "x"}], "rule 1 has no 'rule'"),
        ([7], "rule 1 is 7; expected a name or a table"),
        ({"rulez": []}, "it has neither rules nor DebugRuleConfigurations"),
        ({"rules": []}, "it names no rule"),
        (["DeadRelu", "recommended"], "two rules are called 'recommended.DeadRelu'"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(content: Any, said: str) -> None:
    with pytest.raises(RuleError) as error:
        rule_specs(content)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rules.json", "{", "is not JSON"),
        ("rules.yaml", "a: [", "is not YAML"),
        ("rules.toml", "= 3", "is not TOML"),
        ("rules.json", "[]", "it names no rule"),
        ("absent.json", None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_read(run: Path, tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(RuleError, match=said) as error:
        configure([str(tmp_path / name)])
    assert "\n" not in str(error.value)


def test_the_command_says_it_in_one_line(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(entry(rule_to_invoke="VanishingGradient", treshold="1")))
    status, _, stderr = analyze(run, "--rules", str(path))
    assert status == 2 and stderr.count("\n") == 1 and "it has: threshold, start_step, end_step" in stderr


def test_lists_are_split_between_brackets_only() -> None:
    (spec,) = rule_specs(
        entry(rule_to_invoke="AllZero", collection_names="weights, biases", tensor_regex="a{1,2}b,[c,d]")
    )
    assert spec.parameters == {"collection_names": ("weights", "biases"), "tensor_regex": ("a{1,2}b", "[c,d]")}
