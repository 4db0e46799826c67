"""What the rules of the set share: they fire once, and say what they looked at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Coverage, Finding
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step

NAMED = 12
"""Tensors that a finding names; how many there are is in its message."""

WHOLE = "needs whole tensors (save_raw_tensor)"
"""What a rule says of a tensor that was recorded as statistics."""


class SageMakerRule(Rule):
    """Judges each step on its own or against what it keeps; over at the first step at which it fires.

    SageMaker ends the evaluation of a rule there: one finding is the verdict.

    Attributes:
        nothing: what was missing where the rule could look at no step.
    """

    nothing: str = "no tensor that it looks at was recorded"

    def __init__(self) -> None:
        self._fired = False
        self._steps = 0
        self._first: int | None = None
        self._last: int | None = None
        self._tensors = 0
        self._lacking: dict[str, None] = {}
        self._margin: float | None = None
        self._closest = ""

    @abstractmethod
    def judge(self, step: Step) -> Finding | None:
        """What is now certain, or None."""

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if self._fired:
            return
        finding = self.judge(step)
        if finding is not None:
            self._fired = True
            yield finding

    def looked_at(self, step: Step, tensors: int) -> None:
        """Note that it could judge a step."""
        self._steps += 1
        self._first = step.step if self._first is None else self._first
        self._last = step.step
        self._tensors = max(self._tensors, tensors)

    def lacks(self, what: str) -> None:
        """Note what it would have needed."""
        if len(self._lacking) < 3:
            self._lacking[what] = None

    def came_near(self, margin: float, closest: str) -> None:
        """Note how near it came to firing: measured over threshold, so that 1 fires."""
        if np.isfinite(margin) and (self._margin is None or margin > self._margin):
            self._margin, self._closest = float(margin), closest

    def fire(
        self,
        step: Step,
        names: Sequence[str],
        values: NDArray[np.float64] | Sequence[float],
        *,
        threshold: float,
        message: str,
        suggestion: str,
        unit: str,
        first_step: int | None = None,
        column: str | None = None,
    ) -> Finding:
        """The finding about these tensors, the worst first, of which the first has the value that decided."""
        evidence: dict[str, object] = {"series": list(names[:NAMED]), "unit": unit}
        if column is not None:
            evidence["column"] = column
        return self.finding(
            step,
            first_step=step.step if first_step is None else first_step,
            tensors=names[:NAMED],
            value=float(values[0]),
            threshold=threshold,
            message=message,
            suggestion=suggestion,
            evidence=evidence,
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing = tuple(self._lacking) or (() if self._steps else (self.nothing,))
        return Coverage(
            decided=self._steps > 0,
            steps=self._steps,
            first_step=self._first,
            last_step=self._last,
            tensors=self._tensors,
            missing=missing,
            margin=self._margin,
            closest=self._closest,
        )


def and_others(names: Sequence[str], every: int) -> str:
    """The end of a message about the first of these tensors: how many others it is true of."""
    return f"; the same holds for {len(names) - 1} more of {every} tensors" if len(names) > 1 else ""


def percent(name: str, value: float) -> None:
    """Check a parameter that is a share in per cent.

    Raises:
        ValueError: it is not in [0, 100].
    """
    if not 0 <= value <= 100:
        raise ValueError(f"{name} is {value}; expected a percentage from 0 to 100")


def fraction(name: str, value: float) -> None:
    """Check a parameter that is a share.

    Raises:
        ValueError: it is not in [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected a share from 0 to 1")


def at_least(name: str, value: float, least: float) -> None:
    """Check a parameter that has a lower bound.

    Raises:
        ValueError: it is below it.
    """
    if not value >= least:
        raise ValueError(f"{name} is {value}; expected {least} or more")


def above(name: str, value: float, bound: float) -> None:
    """Check a parameter that has an open lower bound.

    Raises:
        ValueError: it is not above it.
    """
    if not value > bound:
        raise ValueError(f"{name} is {value}; expected a number above {bound}")


def worst_first(hit: NDArray[np.intp], badness: NDArray[np.float64]) -> Iterable[int]:
    """Rows of tensors that are concerned, by how badly."""
    return [int(row) for row in hit[np.argsort(-badness[hit], kind="stable")]]
