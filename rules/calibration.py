"""Fits thresholds of rules to healthy runs: where each run would set a rule off, and what that says of the next one.

For every run and threshold the value is sought at which the rule just fires: the run is judged with several values at
once, in three passes of finer and finer steps. Of these critical values the proposal follows:

- from at least 1 / rate - 1 runs by rank: the k-th worst of n, k = floor(rate * (n + 1)), is passed by the next run
  with probability k / (n + 1), whatever their distribution (Wilks 1941);
- from fewer by the upper prediction bound of a normal distribution of their logarithms,
  mean + t(n - 1, 1 - rate) * s * sqrt(1 + 1 / n) (Hahn 1969), which extrapolates.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import RULE_SETS, RuleSpec
from stepwatch.rules.errors import RuleError
from stepwatch.rules.finding import json_number
from stepwatch.rules.replay import LiveAnalysis
from stepwatch.rules.rule import Quieter

_SENSITIVE = 1e3  # times more sensitive than the present value: how far is looked
_QUIET = 1e6
_VALUES = 8
_PASSES = 3

Basis = Literal["rank", "prediction", "kept"]


@dataclass(frozen=True)
class Threshold:
    """A threshold of a rule, and the values between which it is looked for.

    Attributes:
        spec: the rule.
        parameter: its parameter.
        quieter: whether a higher or a lower value makes the rule quieter.
        present: its value now.
        sensitive, quiet: the ends of the range.
    """

    spec: RuleSpec
    parameter: str
    quieter: Quieter
    present: float
    sensitive: float
    quiet: float

    def value(self, position: float) -> float:
        """The value at a position: 0 is the most sensitive, 1 the quietest; even in the logarithm."""
        return float(self.sensitive * (self.quiet / self.sensitive) ** position)

    def position(self, value: float) -> float:
        """Inverse of :meth:`value`."""
        return math.log(value / self.sensitive) / math.log(self.quiet / self.sensitive)


@dataclass
class Proposal:
    """What the runs say of one threshold.

    Attributes:
        threshold: the threshold.
        critical: by run, the value at which the rule just fires; None where it does not at the most sensitive one.
        proposed: the value proposed.
        basis: how it was found: by ``"rank"`` or ``"prediction"``, or ``"kept"`` as it was.
        note: what a person should know of it, "" where nothing.
    """

    threshold: Threshold
    critical: dict[str, float | None]
    proposed: float
    basis: Basis
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The entry of ``thresholds`` in ``rules calibrate --json``."""
        return {
            "rule": self.threshold.spec.name,
            "parameter": self.threshold.parameter,
            "quieter": self.threshold.quieter,
            "before": self.threshold.present,
            "after": self.proposed,
            "basis": self.basis,
            "critical": {run: None if value is None else json_number(value) for run, value in self.critical.items()},
            "note": self.note,
        }


@dataclass
class Calibration:
    """Proposals for a number of rules.

    Attributes:
        runs: the runs.
        rate: the share of healthy runs on which a rule may fire.
        proposals: one per threshold.
        specs: the rules with the thresholds proposed.
        alarms: by rule, the runs on which it fires before and after.
    """

    runs: list[str]
    rate: float
    proposals: list[Proposal]
    specs: list[RuleSpec]
    alarms: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)

    @property
    def settings(self) -> list[str]:
        """What to give to ``--set`` for the thresholds that have changed."""
        return [
            f"{p.threshold.spec.name}.{p.threshold.parameter}={p.proposed!r}"
            for p in self.proposals
            if p.proposed != p.threshold.present
        ]

    def to_json(self) -> dict[str, Any]:
        """What ``rules calibrate --json`` prints."""
        return {
            "runs": self.runs,
            "false_alarms": self.rate,
            "thresholds": [proposal.to_json() for proposal in self.proposals],
            "alarms": {rule: {"before": before, "after": after} for rule, (before, after) in self.alarms.items()},
            "settings": self.settings,
        }

    def rule_file(self) -> dict[str, Any]:
        """What a rule file holds that says the same."""
        return {"rules": [_entry(spec) for spec in self.specs]}


def calibrate(runs: Sequence[Path], specs: Sequence[RuleSpec], rate: float = 0.01) -> Calibration:
    """Propose thresholds.

    Args:
        runs: at least two runs in which nothing was wrong.
        specs: the rules.
        rate: the share of healthy runs on which a rule may fire, in (0, 0.5].

    Raises:
        TraceError: a run that cannot be read.
        RuleError: too few runs, or a rate that is out of range.
    """
    if not 0 < rate <= 0.5:
        raise RuleError(f"the rate of false alarms is {rate}; expected a number above 0 and up to 0.5")
    runs = list(dict.fromkeys(runs))
    if len(runs) < 2:
        raise RuleError(f"got {len(runs)} run; expected at least 2 healthy ones, and better 20")
    names = [str(run) for run in runs]
    thresholds = [found for spec in specs for found in _thresholds(spec)]
    critical = [_critical_positions(run, thresholds) for run in runs]
    proposals = [
        _propose(threshold, dict(zip(names, positions, strict=True)), rate)
        for threshold, positions in zip(thresholds, zip(*critical, strict=True), strict=True)
    ]
    chosen = [_with_proposals(spec, proposals) for spec in specs]
    result = Calibration(names, rate, proposals, chosen)
    fired = {name: _fired(run, [*specs, *chosen]) for name, run in zip(names, runs, strict=True)}
    for at, spec in enumerate(specs):
        before = [name for name in names if fired[name][at]]
        after = [name for name in names if fired[name][len(specs) + at]]
        result.alarms[spec.name] = (before, after)
    return result


def _thresholds(spec: RuleSpec) -> list[Threshold]:
    signature = inspect.signature(spec.rule.__init__)
    found = []
    for parameter, quieter in spec.rule.calibrated:
        present = float(spec.parameters.get(parameter, signature.parameters[parameter].default))
        up = quieter == "higher"
        sensitive = _last_allowed(spec, parameter, present, 1 / _SENSITIVE if up else _SENSITIVE)
        quiet = _last_allowed(spec, parameter, present, _QUIET if up else 1 / _QUIET)
        found.append(Threshold(spec, parameter, quieter, present, sensitive, quiet))
    return found


def _last_allowed(spec: RuleSpec, parameter: str, present: float, factor: float) -> float:
    """The value farthest from the present one, up to this factor, that the rule takes."""

    def allowed(value: float) -> bool:
        try:
            spec.with_parameter(parameter, value).build()
        except RuleError:
            return False
        return True

    if allowed(present * factor):
        return present * factor
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(present * factor**middle) else (low, middle)
    last = float(present * factor**low)
    written = float(f"{last:.6g}")
    return written if allowed(written) else last


def _critical_positions(run: Path, thresholds: Sequence[Threshold]) -> list[float | None]:
    """By threshold the quietest position at which the rule fires on a run; None where it does at none."""
    found: list[float | None] = [None] * len(thresholds)
    brackets: list[tuple[float, float] | None] = [(0.0, 1.0)] * len(thresholds)
    for number in range(_PASSES):
        tried: list[list[float]] = [
            np.linspace(*bracket, _VALUES + 1)[0 if number == 0 else 1 :].tolist() if bracket else []
            for bracket in brackets
        ]
        judged = [(at, position) for at, positions in enumerate(tried) for position in positions]
        fired = _fired(run, [_alone(thresholds[at], position, thresholds) for at, position in judged])
        for (at, position), fires in zip(judged, fired, strict=True):
            if fires and position > (-1 if found[at] is None else found[at]):  # type: ignore[operator]
                found[at] = position
        width = 1 / _VALUES ** (number + 1)
        brackets = [None if at is None or at == 1 else (at, at + width) for at in found]
    return found


def _alone(threshold: Threshold, position: float, every: Sequence[Threshold]) -> RuleSpec:
    """The rule with the threshold there, and its other thresholds where they are quietest."""
    spec = threshold.spec
    for other in every:
        if other.spec is threshold.spec:
            spec = spec.with_parameter(other.parameter, other.quiet)
    return spec.with_parameter(threshold.parameter, threshold.value(position))


def _fired(run: Path, specs: Sequence[RuleSpec]) -> list[bool]:
    judged = LiveAnalysis(Trace(run), specs)
    judged.conclude()
    return [bool(result.findings) for result in judged.analysis(live=False).results]


def _propose(threshold: Threshold, positions: dict[str, float | None], rate: float) -> Proposal:
    critical = {run: None if at is None else threshold.value(at) for run, at in positions.items()}
    near = sorted(at for at in positions.values() if at is not None)
    if near and near[-1] == 1.0:
        loud = next(run for run, at in positions.items() if at == 1.0)
        note = f"fires on {loud} at any value: is that run healthy?"
        return Proposal(threshold, critical, threshold.present, "kept", note)
    if not near:
        return Proposal(threshold, critical, threshold.present, "kept", "no run comes near")
    if len(positions) + 1 >= 1 / rate:
        by_rank = sorted(-1.0 if at is None else at for at in positions.values())
        worst = by_rank[-max(1, math.floor(rate * (len(positions) + 1) + 1e-9))]
        if worst < 0:
            return Proposal(
                threshold, critical, threshold.present, "kept", f"only {len(near)} of {len(positions)} come near"
            )
        basis: Basis = "rank"
        note = ""
    elif len(near) < 2:
        return Proposal(threshold, critical, threshold.present, "kept", "only one run comes near")
    else:
        spread = float(np.std(near, ddof=1)) * math.sqrt(1 + 1 / len(near))
        worst = float(np.mean(near)) + student_t(len(near) - 1, 1 - rate) * spread
        basis = "prediction"
        note = f"extrapolated from {len(near)} runs; {math.ceil(1 / rate) - 1} would decide by rank"
    margin = 1 / _VALUES**_PASSES  # the critical value lies within one step of the last pass
    value = _rounded(threshold, threshold.value(min(1.0, max(0.0, worst + margin))))
    return Proposal(threshold, critical, value, basis, note)


def _rounded(threshold: Threshold, value: float) -> float:
    """Two significant digits, towards the quieter side, as far as the rule takes that."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    up = threshold.quieter == "higher"
    rounded = float(f"{(math.ceil(value / digit) if up else math.floor(value / digit)) * digit:.1e}")
    return rounded if (rounded <= threshold.quiet if up else rounded >= threshold.quiet) else value


def _with_proposals(spec: RuleSpec, proposals: Sequence[Proposal]) -> RuleSpec:
    changed = spec
    for proposal in proposals:
        if proposal.threshold.spec is spec and proposal.proposed != proposal.threshold.present:
            changed = changed.with_parameter(proposal.threshold.parameter, proposal.proposed)
    return changed


def _entry(spec: RuleSpec) -> str | dict[str, Any]:
    """A rule as rule files have it."""
    rule = replace(spec, label="").qualified_name
    if not any(spec.rule in rules for rules in RULE_SETS.values()):
        rule = f"{Path(inspect.getfile(spec.rule)).resolve()}:{spec.rule.__name__}"
    entry: dict[str, Any] = {"rule": rule}
    if spec.label:
        entry["name"] = spec.label
    if spec.parameters:
        entry["parameters"] = {key: list(v) if isinstance(v, tuple) else v for key, v in spec.parameters.items()}
    if spec.start_step:
        entry["start_step"] = spec.start_step
    if spec.end_step is not None:
        entry["end_step"] = spec.end_step
    if spec.severity is not None:
        entry["severity"] = spec.severity.value
    if spec.tensors:
        entry["tensors"] = list(spec.tensors)
    if spec.stop:
        entry["stop"] = True
    return entry if len(entry) > 1 else rule


def student_t(freedom: int, probability: float) -> float:
    """Quantile of Student's t distribution, for probabilities of 0.5 and more.

    With t = sqrt(freedom) * tan(a) the density of the angle a is proportional to cos(a) ** (freedom - 1).
    """
    angle = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angle) ** (freedom - 1)
    share = np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2))
    return math.sqrt(freedom) * math.tan(float(np.interp(probability - 0.5, share / share[-1] / 2, angle)))
