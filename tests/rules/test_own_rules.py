"""What users write rules with: made-up runs to test them, and packages that provide them."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import RuleSpec, configure, known_rules
from stepwatch.rules.errors import RuleError
from stepwatch.rules.replay import analyze
from stepwatch.rules.testing import SyntheticRun

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own-rules.md").read_text(), re.DOTALL)

DEAD = np.array([16.0, 16.0, 16.0, 0.0])
LIVE = np.array([16.0, 2.0, 0.0, 0.0])
FALLING = SyntheticRun(steps=400).loss(lambda step: 0.2 + 2 * math.exp(-step / 50))
EIGHT = [f"layer{number}.weight" for number in range(8)]

FIRING = {
    "ExplodingTensor": SyntheticRun()
    .loss([2.3] * 4)
    .gradients({"fc1.weight": 1e-3, "fc2.weight": [1, 1, math.inf, 1]}),
    "VanishingGradient": SyntheticRun(steps=60).gradients({name: 1e-9 * 8**at for at, name in enumerate(EIGHT)}),
    "DeadRelu": SyntheticRun(steps=12).derived("relu_output_0", "unit_activity", lambda at: DEAD if at > 8 else LIVE),
    "UnchangedTensor": SyntheticRun(steps=120).weights({"fc.weight": 0.1}).gradients({"fc.weight": 1e-2}),
    "ZeroLearningRate": SyntheticRun(steps=60).learning_rate(0),
    "DivergingLoss": SyntheticRun(steps=40).loss(lambda step: 1 + step),
    "GradientsNotReset": SyntheticRun().scalar("stepwatch/updates_without_reset", range(30)),
    "Overfit": SyntheticRun(steps=400)
    .loss(lambda step: 2 * math.exp(-step / 50))
    .evaluations(20, [2.0, 1.5, 1.2, 1.0, *(1.0 + 0.1 * at for at in range(16))]),
}


@pytest.mark.parametrize("name", list(FIRING))
def test_a_made_up_fault_is_found_and_a_made_up_healthy_run_is_not(name: str, tmp_path: Path) -> None:
    rule = known_rules()[name]
    judgement = FIRING[name].judge(rule())
    page = f"docs/rules/{name}.md"
    assert len(judgement.findings) == 1
    assert FALLING.judge(rule()).findings == []
    written = analyze(Trace(FIRING[name].write(tmp_path / "run")), [RuleSpec(rule)])
    expected = [{**finding.to_json(), "docs": page} for finding in judgement.findings]
    assert [repr(finding.to_json()) for finding in written.findings] == [repr(finding) for finding in expected]


def test_what_a_made_up_run_holds() -> None:
    given = np.arange(12.0).reshape(3, 4)
    run = (
        SyntheticRun(steps=4, save_every=2)
        .weights({"a.weight": [given] * 4})
        .activations({"act": math.nan}, shape=(2, 3))
    )
    steps = list(run.loss([4, 3, 2, 1]).evaluations(2, lambda number: 10 + number).steps())
    assert [(step.step, step.mode) for step in steps] == [
        *[(0, "TRAIN"), (1, "TRAIN"), (2, "EVAL"), (2, "TRAIN"), (3, "TRAIN"), (4, "EVAL")]
    ]
    assert [step.stats is not None for step in steps] == [True, False, False, True, False, False]
    stats = steps[0].stats
    assert stats is not None
    assert stats.tensors.names == ("a.weight", "act_output_0") and stats.tensors.infos[0].shape == (3, 4)
    assert (stats.max[0], stats.l1[0], stats.n_nan[1]) == (11, 66, 6)
    assert list(stats.tensors.rows("relu_output")) == list(stats.tensors.rows("activations")) == [1]
    assert steps[-1].eval_losses() == {"CrossEntropyLoss_output_0": 11}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (SyntheticRun(steps=3).loss([1.0, 2.0]), "CrossEntropyLoss_output_0 has 2 values"),
        (SyntheticRun().loss(1.0), "no length"),
        (SyntheticRun(steps=2).weights({"w": lambda step: np.ones(2 + step)}), "w has tensors of different sizes"),
    ],
)
def test_values_that_do_not_fit_are_named(run: SyntheticRun, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(run.steps())


def test_what_the_page_says_works() -> None:
    """The rule on the page passes the tests on the page."""
    names: dict[str, object] = {"__name__": "page"}
    for block in BLOCKS:
        exec(compile(block, "docs/own-rules.md", "exec"), names)
    tests = [value for key, value in names.items() if key.startswith("test_") and callable(value)]
    assert len(tests) == 2
    for test in tests:
        test()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with rules: its modules, and the description that an installer leaves beside."""
    (tmp_path / "their_rules.py").write_text(
        f"{BLOCKS[0]}\nfrom stepwatch.rules.recommended import DeadRelu\nALL = [LargeBias, DeadRelu]\nNOTHING = 3\n"
    )
    described = tmp_path / "their_package-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(
        "[stepwatch.rules]\nLargeBias = their_rules:LargeBias\ntheirs = their_rules:ALL\n"
        "wrong = their_rules:NOTHING\ngone = their_rules:Gone\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_rules_of_installed_packages_are_found_by_name(package: Path) -> None:
    assert [spec.name for spec in configure(["theirs"])] == ["LargeBias", "DeadRelu"]
    (spec,) = configure(["largebias"], ["LargeBias.limit=3"])
    assert len(SyntheticRun(steps=9).biases({"b.bias": lambda step: step}).judge(spec.build()).findings) == 7
    for name, said in (("wrong", "no rule"), ("gone", "cannot be loaded"), ("LargeBiass", "did you mean LargeBias")):
        with pytest.raises(RuleError, match=said):
            configure([name])


def test_rules_of_installed_packages_are_listed(package: Path) -> None:
    def listed(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stepwatch.cli", "rules", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(package)}
        )

    done = listed("--json")
    assert done.returncode == 0, done.stderr
    entry = next(entry for entry in json.loads(done.stdout) if entry["rule"] == "LargeBias")
    assert entry["package"] == "their-package 1.0"
    assert entry["parameters"] == {"limit": {"type": "float", "default": 10.0}}
    assert "wrong" in done.stderr and "gone" in done.stderr
    assert "their-package 1.0" in listed().stdout
    assert "A bias is larger" in listed("LargeBias").stdout
