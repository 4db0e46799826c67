"""Which steps and tensors a rule is shown, how bad its findings are, and what other parameters change."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.configuration import rule_specs
from stepwatch.rules.errors import RuleError
from stepwatch.rules.finding import Severity
from stepwatch.rules.replay import Analysis, analyze
from stepwatch.rules.testing import SyntheticRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NaN in the decoder's gradient at step 30, and an evaluation loss that rises by a fifth from step 80 on."""
    rises = [2.0, 1.5, 1.2, 1.0, *(1.0 + 0.2 * min(1, (at + 1) / 8) for at in range(16))]
    made = (
        SyntheticRun(steps=400)
        .loss(lambda step: 2 * math.exp(-step / 50))
        .evaluations(20, rises)
        .gradients({"encoder.weight": 1e-2, "decoder.weight": lambda step: math.nan if step == 30 else 1e-2})
        .weights({"encoder.weight": 0.1, "decoder.weight": lambda step: 0.1 + 1e-3 * step})
    )
    return made.write(tmp_path_factory.mktemp("runs") / "run")


def found(analysis: Analysis) -> dict[str, tuple[Severity, int, tuple[str, ...]]]:
    return {f.rule: (f.severity, f.last_step, f.tensors) for f in analysis.findings}


def test_a_rule_is_shown_the_tensors_that_its_configuration_names(run: Path) -> None:
    both = ["ExplodingTensor", "UnchangedTensor"]
    everything = found(analyze(Trace(run), configure(both)))
    assert everything["ExplodingTensor"][1:] == (30, ("gradient/decoder.weight",))
    assert everything["UnchangedTensor"][2] == ("encoder.weight",)
    narrowed = configure(both, ["ExplodingTensor.tensors=encoder", "UnchangedTensor.tensors=^gradient/,dec.*weight"])
    analysis = analyze(Trace(run), narrowed)
    assert found(analysis) == {}
    assert {result.rule: result.coverage.tensors for result in analysis.results}["UnchangedTensor"] == 1


def test_severity_and_steps_are_chosen_in_files_as_in_settings(run: Path) -> None:
    entry = {"rule": "ExplodingTensor", "severity": "warning", "tensors": ["decoder"], "end_step": 31}
    settings = [f"ExplodingTensor.{key}={value}" for key, value in (("severity", "Warning"), ("tensors", "decoder"))]
    for specs in (rule_specs([entry]), configure(["ExplodingTensor"], [*settings, "ExplodingTensor.end_step=31"])):
        assert found(analyze(Trace(run), specs)) == {
            "ExplodingTensor": (Severity.WARNING, 30, ("gradient/decoder.weight",))
        }
    assert found(analyze(Trace(run), rule_specs([{**entry, "end_step": 30}]))) == {}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("Overfit.severity=bad", "Overfit.severity is 'bad'; expected info, warning, error or none"),
        ("Overfit.tensors=(", "is not a regular expression"),
        ("Overfit.start_step=soon", "Overfit.start_step is 'soon'; expected a whole number"),
    ],
)
def test_what_cannot_be_used_is_named(setting: str, said: str) -> None:
    with pytest.raises(RuleError, match=said):
        configure(["Overfit"], [setting])


def test_analyze_says_what_a_setting_changes(run: Path) -> None:
    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "stepwatch.cli", "analyze", str(run), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    before = found(analyze(Trace(run), configure(["Overfit"])))["Overfit"][1]
    settings = ("--set", "Overfit.rise=0.3", "--set", "DivergingLoss.window=9")
    text = call(*settings)
    assert f"Overfit: nothing found (before: warning at step {before})" in text
    assert "DivergingLoss: nothing found (as before)" in text
    changes = json.loads(call("--json", "--set", "Overfit.patience=8"))["changes"]
    assert [change["rule"] for change in changes] == ["Overfit"]
    assert [entry["step"] for entry in changes[0]["before"]] == [before]
    assert changes[0]["after"][0]["step"] > before
    assert "changes" not in json.loads(call("--json")) and "--set changes" not in call()
