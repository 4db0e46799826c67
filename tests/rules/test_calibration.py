"""Thresholds fitted to runs whose critical values are known."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stepwatch.rules.calibration import Proposal, calibrate, student_t
from stepwatch.rules.catalogue import RULE_SETS, RuleSpec, configure, parameters_of
from stepwatch.rules.errors import RuleError
from stepwatch.rules.finding import Coverage, Finding
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step
from stepwatch.rules.testing import SyntheticRun


class LargeLoss(Rule):
    """The loss is above a limit; a NaN is bad at any."""

    calibrated = (("limit", "higher"), ("drop", "lower"))

    def __init__(self, *, limit: float = 10.0, drop: float = 0.0001) -> None:
        if not drop < 0.5:
            raise ValueError(f"drop is {drop}; expected less than 0.5")
        self.limit, self.drop, self._fired = limit, drop, False

    def observe(self, step: Step) -> Iterator[Finding]:
        value = step.scalars["loss"]
        if not self._fired and (not value <= self.limit or value < self.drop):
            self._fired = True
            yield self.finding(
                step, first_step=0, tensors=[], value=value, threshold=self.limit, message="large", suggestion="less"
            )

    def coverage(self) -> Coverage:
        return Coverage(decided=True)


def runs_with(folder: Path, highest: list[float]) -> list[Path]:
    losses = [[1.0, value, 1.0] for value in highest]
    return [SyntheticRun().scalar("loss", loss).write(folder / f"{at}") for at, loss in enumerate(losses)]


def proposal(proposals: list[Proposal], parameter: str) -> Proposal:
    return next(each for each in proposals if each.threshold.parameter == parameter)


def test_many_runs_decide_by_rank(tmp_path: Path) -> None:
    highest = [float(20 + at) for at in range(29)]
    found = calibrate(runs_with(tmp_path, highest), [RuleSpec(LargeLoss)], rate=0.1)
    limit = proposal(found.proposals, "limit")
    # The third highest of 29 is passed by the thirtieth with probability 3 / 30.
    assert limit.basis == "rank" and 46 < limit.proposed < 46 * 1.07
    assert list(limit.critical.values()) == pytest.approx(highest, rel=0.06)
    drop = proposal(found.proposals, "drop")
    assert drop.basis == "kept" and drop.proposed == 0.0001 and drop.note == "no run comes near"
    before, after = found.alarms["LargeLoss"]
    assert len(before) == 29 and after == [str(tmp_path / str(at)) for at in range(29) if highest[at] > limit.proposed]


def test_few_runs_are_extrapolated_and_new_ones_keep_below(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    highest = np.exp(rng.normal(2, 0.3, 12)).tolist()
    found = calibrate(runs_with(tmp_path, highest), [RuleSpec(LargeLoss)], rate=0.05)
    limit = proposal(found.proposals, "limit")
    assert limit.basis == "prediction" and "extrapolated from 12 runs" in limit.note
    expected = np.mean(np.log(highest)) + 1.7959 * np.std(np.log(highest), ddof=1) * math.sqrt(13 / 12)
    assert np.log(limit.proposed) == pytest.approx(expected, abs=0.15)
    assert np.mean(np.exp(rng.normal(2, 0.3, 2000)) > limit.proposed) < 0.1
    assert found.settings == [f"LargeLoss.limit={limit.proposed}"]


def test_a_run_that_fires_at_any_value_is_named(tmp_path: Path) -> None:
    runs = runs_with(tmp_path, [20.0, math.nan, 30.0])
    found = calibrate(runs, [RuleSpec(LargeLoss)], rate=0.1)
    limit = proposal(found.proposals, "limit")
    assert limit.basis == "kept" and limit.proposed == 10.0
    assert f"fires on {runs[1]} at any value" in limit.note


def test_bounds_of_a_parameter_are_kept(tmp_path: Path) -> None:
    runs = [SyntheticRun().scalar("loss", [1.0, low, 1.0]).write(tmp_path / f"{low}") for low in (0.01, 0.4, 0.02)]
    found = calibrate(runs, [RuleSpec(LargeLoss, {"drop": 0.3})], rate=0.5)
    drop = proposal(found.proposals, "drop")
    assert 0.49 < drop.threshold.sensitive < 0.5
    assert 0.017 < drop.proposed <= 0.02, "the middle one of three runs"


@pytest.mark.parametrize(
    ("freedom", "probability", "table"), [(1, 0.99, 31.821), (2, 0.95, 2.920), (4, 0.99, 3.747), (30, 0.995, 2.750)]
)
def test_students_t_is_that_of_the_tables(freedom: int, probability: float, table: float) -> None:
    assert student_t(freedom, probability) == pytest.approx(table, rel=1e-3)


@pytest.mark.parametrize(("count", "rate", "said"), [(1, 0.01, "expected at least 2"), (2, 0.0, "above 0")])
def test_what_cannot_be_calibrated_is_refused(tmp_path: Path, count: int, rate: float, said: str) -> None:
    with pytest.raises(RuleError, match=said):
        calibrate(runs_with(tmp_path, [20.0] * count), [RuleSpec(LargeLoss)], rate)


@pytest.mark.parametrize("rule", sorted({rule for rules in RULE_SETS.values() for rule in rules}, key=str))
def test_thresholds_that_rules_name_are_numbers_of_theirs(rule: type[Rule]) -> None:
    numbers = {p.name: p.default for p in parameters_of(rule) if isinstance(p.default, float)}
    for parameter, quieter in rule.calibrated:
        assert numbers[parameter] > 0 and quieter in ("higher", "lower")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "stepwatch.cli", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_command_writes_rules_that_are_quiet_on_such_runs(tmp_path: Path) -> None:
    """Runs whose evaluation loss always rises by a fifth or so: here that is how it is."""
    runs = []
    for number, rise in enumerate((1.12, 1.2, 1.25, 1.3)):
        evaluations = [2.0, 1.5, 1.2, 1.0, *(1.0 + (rise - 1) * min(1, (at + 1) / 8) for at in range(16))]
        run = SyntheticRun(steps=200).loss(lambda step: 2 * math.exp(-step / 50)).evaluations(10, evaluations)
        runs.append(run.write(tmp_path / f"run{number}"))
    rules, same = tmp_path / "rules.yaml", tmp_path / "rules.json"
    done = command("rules", "calibrate", *runs, "--false-alarms", "0.2", "-o", rules)
    assert done.returncode == 0, done.stderr
    assert "Overfit fired on 4 of these runs before, and fires on 0 after" in done.stdout
    quiet = command("analyze", "--rules", rules, *runs)
    assert quiet.returncode == 0, quiet.stdout
    said = json.loads(command("rules", "calibrate", *runs, "--rules", "Overfit", "--json", "-o", same).stdout)
    (threshold,) = said["thresholds"]
    assert threshold["basis"] == "prediction" and threshold["before"] == 0.1 and threshold["after"] > 0.3
    settings = {"rise": threshold["after"]}
    assert configure(["Overfit"], said["settings"])[0].parameters == configure([str(same)])[0].parameters == settings
    assert command("rules", "calibrate", *runs, "-o", tmp_path / "rules.toml").returncode == 2
