"""A study after the fact: its trials, the best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.compare.objective import goal_of
from stepwatch.rules.finding import json_tree
from stepwatch.rules.step import is_loss
from stepwatch.rules.study.curves import TrialCurves
from stepwatch.rules.study.study import RULE, choose


@dataclass(frozen=True)
class TrialSummary:
    """A trial of a study.

    Attributes:
        run: its directory.
        status: see :meth:`Trace.status`.
        step: the last step at which the objective is known; None where it is at none.
        best: the best value of the objective; None where there is none.
        best_step: where it was reached first.
        given_up: why it was given up, "" where it was not.
        findings: names of the rules that found something else in it while it was watched.
    """

    run: str
    status: str
    step: int | None
    best: float | None
    best_step: int | None
    given_up: str
    findings: tuple[str, ...]


@dataclass(frozen=True)
class StudySummary:
    """A study.

    Attributes:
        objective: name of the scalar by which trials are compared, "" where none has one.
        goal: "min" or "max".
        trials: the best first.
        spared: share of steps that were not made because trials were given up, were all as long as the longest.
        unreadable: why runs are left out, a line for each.
    """

    objective: str
    goal: str
    trials: tuple[TrialSummary, ...]
    spared: float
    unreadable: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        content: dict[str, Any] = json_tree(
            {
                "objective": self.objective,
                "goal": self.goal,
                "spared": self.spared,
                "unreadable": list(self.unreadable),
                "trials": [{**vars(trial), "findings": list(trial.findings)} for trial in self.trials],
            }
        )
        return content


def summarise(runs: Sequence[Path], objective: str | None = None) -> StudySummary:
    """The study that some runs are.

    Args:
        runs: its trials.
        objective: NAME, NAME:min or NAME:max; by default the evaluation loss, or the training loss.

    Raises:
        TraceError: no run can be read, or no trial has recorded the objective that was named.
    """
    name, goal = goal_of(objective) if objective else ("", "min")
    sign = 1.0 if goal == "min" else -1.0
    traces, unreadable = _opened(runs)
    curves = [TrialCurves(trace, lambda scalar: scalar == name if name else is_loss(scalar), sign) for trace in traces]
    for each in curves:
        each.read(ended=True)
    chosen = choose({key for each in curves for key in each.curves})
    if chosen is None and name:
        raise TraceError(f"no trial has recorded {name!r}")
    trials = []
    for trace, each in zip(traces, curves, strict=True):
        curve = each.curves.get(chosen) if chosen is not None else None
        rows = trace.findings()
        best = curve.best[-1] if curve is not None else None
        trials.append(
            TrialSummary(
                run=str(trace.path),
                status=trace.status(),
                step=curve.steps[-1] if curve is not None else None,
                best=None if best is None else sign * best,
                best_step=curve.steps[curve.best.index(curve.best[-1])] if curve is not None else None,
                given_up=next((str(row["message"]) for row in rows if row["rule"] == RULE), ""),
                findings=tuple(dict.fromkeys(str(row["rule"]) for row in rows if row["rule"] != RULE)),
            )
        )
    trials.sort(key=lambda trial: (trial.best is None, sign * (trial.best or 0.0), trial.run))
    return StudySummary(chosen[0] if chosen else "", goal, tuple(trials), _spared(trials), unreadable)


def _opened(runs: Sequence[Path]) -> tuple[list[Trace], tuple[str, ...]]:
    traces, unreadable = [], []
    for run in runs:
        try:
            traces.append(Trace(run))
        except TraceError as error:
            unreadable.append(str(error))
    if not traces:
        raise TraceError("; ".join(unreadable))
    return traces, tuple(unreadable)


def _spared(trials: Sequence[TrialSummary]) -> float:
    longest = max((trial.step or 0 for trial in trials), default=0)
    if not longest:
        return 0.0
    return sum(longest - (trial.step or 0) for trial in trials if trial.given_up) / (longest * len(trials))
