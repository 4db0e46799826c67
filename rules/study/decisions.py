"""Which trials of a study are not worth going on with: pure functions of what they have reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Curve:
    """What a trial has reached, the lower the better; values that are not finite count as infinite.

    Attributes:
        steps: ascending.
        best: the lowest value up to each step.
        sums: of the values up to each step.
    """

    steps: list[int] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        """The value at a step behind those known."""
        value = value if math.isfinite(value) else math.inf
        self.steps.append(step)
        self.best.append(min(value, self.best[-1] if self.best else math.inf))
        self.sums.append(value + (self.sums[-1] if self.sums else 0.0))

    def best_by(self, step: int) -> float:
        """The lowest value up to a step; infinite where there is none."""
        count = self._count(step)
        return self.best[count - 1] if count else math.inf

    def mean_by(self, step: int) -> float:
        """The mean of the values up to a step; infinite where there is none."""
        count = self._count(step)
        return self.sums[count - 1] / count if count else math.inf

    def since_best(self) -> int:
        """Steps since the lowest value was reached for the first time."""
        return self.steps[-1] - self.steps[self.best.index(self.best[-1])] if self.steps else 0

    def _count(self, step: int) -> int:
        return int(np.searchsorted(self.steps, step, side="right"))


@dataclass(frozen=True)
class Verdict:
    """Why a trial is not worth going on with.

    Attributes:
        value, threshold: the measured number and the one it was held against.
        why: in words, to be put behind "the trial".
        in_steps: whether they are numbers of steps, not values of the objective.
    """

    value: float
    threshold: float
    why: str
    in_steps: bool = False


def leads(trial: str, curves: Mapping[str, Curve]) -> bool:
    """Whether no other trial has reached more; such a trial is never given up."""
    best = curves[trial].best[-1] if curves[trial].best else math.inf
    return all(best <= other.best[-1] for name, other in curves.items() if name != trial and other.best)


def below_median(trial: str, curves: Mapping[str, Curve], grace: int, peers: int) -> Verdict | None:
    """The median stopping rule (Golovin et al., "Google Vizier", 2017).

    A trial is not worth going on with when the best that it has reached is worse than the median of the averages of
    the others, up to the last step that it and enough others have come to. An average is no better than the best that
    it is of, so the rule gives nobody up who leads.

    Args:
        trial: the trial.
        curves: all trials.
        grace: the first step at which they are compared.
        peers: how many others must have come as far.
    """
    mine = curves[trial]
    others = [other for other in curves.values() if other is not mine and other.steps]
    if len(others) < peers:
        return None
    step = min(mine.steps[-1], sorted((other.steps[-1] for other in others), reverse=True)[peers - 1])
    means = [other.mean_by(step) for other in others if other.steps[-1] >= step]
    median = float(np.median(means))
    if step < grace or not mine.best[-1] > median:
        return None
    return Verdict(mine.best[-1], median, f"is behind the median of {len(means)} others at step {step}")


def not_promoted(trial: str, curves: Mapping[str, Curve], first: int, reduction: int) -> Verdict | None:
    """Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020).

    Rungs are at ``first``, ``first * reduction``, ``first * reduction**2`` ... steps. A trial that has come to one
    goes on where it is among the best ``1 / reduction`` of those that have come there, itself included. Who came there
    early is judged when enough others have, and by what it has reached since.

    Args:
        trial: the trial.
        curves: all trials.
        first: steps of the first rung.
        reduction: how many come to a rung for each that goes on; a rung to which fewer have come decides nothing.
    """
    mine = curves[trial]
    for rung in reversed(_rungs(mine.steps[-1], first, reduction)):
        reached = sorted(
            other.best_by(rung)
            for other in curves.values()
            if other is not mine and other.steps and other.steps[-1] >= rung
        )
        count = len(reached) + 1
        if count < reduction:
            continue
        places, value = math.ceil(count / reduction), mine.best[-1]
        if sum(best < value for best in reached) < places:
            return None
        why = f"is not among the best {places} of {count} at the rung of step {rung}"
        return Verdict(value, reached[places - 1], why)
    return None


def stagnates(trial: str, curves: Mapping[str, Curve], patience: int) -> Verdict | None:
    """A trial that has not come further for more than so many steps."""
    mine = curves[trial]
    still = mine.since_best()
    if still <= patience:
        return None
    return Verdict(float(still), float(patience), f"has not come further for {still} steps", in_steps=True)


def _rungs(step: int, first: int, reduction: int) -> list[int]:
    """Those at or before a step."""
    rungs: list[int] = []
    while first <= step:
        rungs.append(first)
        first *= reduction
    return rungs


def ranking(curves: Mapping[str, Curve]) -> Sequence[str]:
    """Trials with values, the best first."""
    return [name for _, name in sorted((curve.best[-1], name) for name, curve in curves.items() if curve.best)]
