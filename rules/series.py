"""The training loss as a series, and robust measures of it."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Coverage
from stepwatch.rules.history import History
from stepwatch.rules.step import Step

_FIRST = 20
_KEPT = 4096
_KEPT_STEPS = 1024
_EVALUATIONS = 256
_CAPTURED = re.compile(r"_output_\d+$")


class Points:
    """Values of a series and their steps, for all who have seen the same of it.

    Attributes:
        steps, values: the points.
        count: how many.
    """

    def __init__(self) -> None:
        self.steps: History[int] = History("q", _KEPT_STEPS)
        self.values: History[float] = History("d", _KEPT, together=64)
        self.count = 0
        self._latest: tuple[int, str, int] | None = None

    def add(self, step: Step, value: float, known: int) -> bool:
        """See that the value of a step comes after the first ``known`` points; False where another one does."""
        if self.count == known:
            self.steps.append(step.step)
            self.values.append(value)
            self.count += 1
            self._latest = _key(step)
            return True
        return self.count == known + 1 and self._latest == _key(step)

    def began_at(self, step: Step) -> bool:
        """Whether this is the step of its only point."""
        return self.count == 1 and self._latest == _key(step)

    def first(self, count: int) -> Points:
        """The first points, to go on in another way."""
        points = Points()
        points.steps, points.values, points.count = self.steps.head(count), self.values.head(count), count
        return points


def _key(step: Step) -> tuple[int, str, int]:
    return step.step, step.mode, step.mode_step


def _beginning_with(step: Step, shared: dict[str, Any]) -> Points:
    """The points of those who see a first one at this step."""
    points = shared.get("loss")
    if points is None or not points.began_at(step):
        points = shared["loss"] = Points()
    return points


class TrainingLoss:
    """The loss of a run, step by step.

    Several training losses (a GAN's, a distillation's) have no common meaning of falling or rising; then
    there is no main loss, and rules about it stay silent.

    What was seen of it is in memory once, however many rules look at it, and takes bounded room.

    Attributes:
        name: the series.
        count: of how many steps it was seen.
    """

    def __init__(self) -> None:
        self.name = ""
        self.count = 0
        self._points = Points()
        self._names: set[str] = set()

    @property
    def steps(self) -> History[int]:
        """The steps of which it was seen; not to be changed."""
        steps = self._points.steps
        return steps if self._points.count == self.count else steps.head(self.count)

    @property
    def values(self) -> History[float]:
        """What was seen of it, non-finite values included; not to be changed."""
        values = self._points.values
        return values if self._points.count == self.count else values.head(self.count)

    def observe(self, step: Step) -> float | None:
        """The loss of this step, or None where it has none of its own."""
        losses = step.train_losses()
        if not losses:
            return None
        if len(losses) == 1 == len(self._names) and self.name in losses:
            value = losses[self.name]
        else:
            captured = {name: value for name, value in losses.items() if _CAPTURED.search(name)} or losses
            self._names |= captured.keys()
            if len(self._names) > 1:
                return None
            ((self.name, value),) = captured.items()
        if not self.count and step.shared is not None:
            self._points = _beginning_with(step, step.shared)
        if not self._points.add(step, value, self.count):
            self._points = self._points.first(self.count)  # others have seen steps that this one has not
            self._points.add(step, value, self.count)
        self.count += 1
        return value

    @property
    def several(self) -> bool:
        """Whether there is more than one training loss."""
        return len(self._names) > 1

    @property
    def signed(self) -> bool:
        """Whether it is of both signs from its start, as the loss of a policy gradient: no measure of progress."""
        first = self.values[:_FIRST]
        return min(first, default=0.0) < 0 < max(first, default=0.0)

    @property
    def below_zero(self) -> bool:
        """Whether it is below zero at its start, as a reward with its sign turned or the surrogate of one."""
        return max(self.values[:_FIRST], default=0.0) < 0

    def missing(self, needed: int, *, progress: bool = False) -> tuple[str, ...]:
        """Why there is no verdict yet, for a rule that needs this many steps, perhaps to judge progress."""
        if progress and self.signed:
            return ("a training loss of both signs from its start: it is no measure of progress",)
        if self.several:
            return (f"several training losses ({', '.join(sorted(self._names))}): no main one",)
        if not self.count:
            return ("no training loss was recorded",)
        if self.count < needed:
            return (f"{self.count} steps with a loss; at least {needed} are needed",)
        return ()

    def coverage(
        self, needed: int, margin: float | None = None, closest: str = "", *, progress: bool = False
    ) -> Coverage:
        """Coverage of a rule that judges this series, or the progress in it, once it has ``needed`` steps."""
        missing = self.missing(needed, progress=progress)
        return Coverage(
            decided=not missing,
            steps=self.count,
            first_step=self.steps[0] if self.steps else None,
            last_step=self.steps[-1] if self.steps else None,
            tensors=min(len(self._names), 1),
            missing=missing,
            margin=margin,
            closest=closest,
        )


class LabelCounts:
    """How often each class was seen as a label of the classifier's loss, where that is recorded."""

    def __init__(self) -> None:
        self._counts: NDArray[np.float64] | None = None

    def observe(self, step: Step) -> None:
        """Take note of a step's ``class_counts``."""
        for (_, quantity), vector in step.derived.items():
            if quantity == "class_counts":
                labels = vector[: len(vector) // 2]
                if self._counts is None or self._counts.shape != labels.shape:
                    self._counts = np.zeros_like(labels)
                self._counts += labels

    def counts(self) -> NDArray[np.float64]:
        """Labels of each class so far; empty where none were seen."""
        return np.empty(0) if self._counts is None else self._counts.copy()

    def loss_of_guessing(self) -> float | None:
        """Entropy of the label frequencies in nats: the cross-entropy of a model that knows nothing else.

        None before 100 labels were seen, or where nearly all are of one class.
        """
        if self._counts is None or self._counts.sum() < 100:
            return None
        shares = self._counts[self._counts > 0] / self._counts.sum()
        entropy = float(-(shares * np.log(shares)).sum())
        return entropy if entropy > 0.1 else None


class RisingRate:
    """Whether the learning rate is still being warmed up."""

    def __init__(self) -> None:
        self._highest = -math.inf

    def observe(self, step: Step) -> bool:
        """True where this step's rate is higher than all before it (not at the first one)."""
        rates = [value for name, value in step.scalars.items() if name.startswith("learning_rate")]
        if not rates:
            return False
        rising = -math.inf < self._highest < max(rates)
        self._highest = max(self._highest, *rates)
        return rising


class EvalCurve:
    """The evaluation loss: one point per evaluation, the mean of its batches.

    Attributes:
        name: the series.
        steps, values: global step and mean loss of each finished evaluation.
    """

    def __init__(self) -> None:
        self.name = ""
        self.steps: History[int] = History("q", _EVALUATIONS)
        self.values: History[float] = History("d", _EVALUATIONS)
        self._open: list[float] = []
        self._open_step = -1

    def observe(self, step: Step) -> bool:
        """Take note of a step; True when it finishes an evaluation (the next training step does)."""
        losses = step.eval_losses()
        finished = (step.training or step.step != self._open_step) and self.finish()
        if losses:
            name, value = next(iter(losses.items()))
            self.name = self.name or name
            if name == self.name:
                self._open.append(value)
                self._open_step = step.step
        return finished

    def finish(self) -> bool:
        """Nothing more belongs to the evaluation that is under way; False where none is."""
        if not self._open:
            return False
        self.steps.append(self._open_step)
        self.values.append(float(np.mean(self._open)))
        self._open = []
        return True


class RecentMedian:
    """The median of the latest values, kept sorted so that a value costs no sorting.

    Args:
        count: how many values are kept.
    """

    def __init__(self, count: int) -> None:
        self._latest: deque[float] = deque(maxlen=count)
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, value: float) -> None:
        """Take a value; NaN is left out."""
        if value != value:
            return
        if len(self._latest) == self._latest.maxlen:
            del self._sorted[bisect_left(self._sorted, self._latest[0])]
        self._latest.append(value)
        insort(self._sorted, value)

    def median(self) -> float:
        """Their median; there must be some."""
        half = len(self._sorted) // 2
        return (self._sorted[half] + self._sorted[-half - 1]) / 2


def median(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Median of some numbers, NaN where one of them is; for few of them ten times as fast as NumPy's."""
    ordered = np.sort(values)
    half = len(ordered) // 2
    return float((ordered[half] + ordered[-half - 1]) / 2) if ordered[-1] == ordered[-1] else math.nan


def due(count: int, every: int) -> bool:
    """Whether a rule that looks back over a whole series does so at this length.

    Every ``every`` values at first; from 400 such looks on half as often whenever the series has doubled, so that
    all looks together take time in proportion to its length.
    """
    return count % (every << max(0, (count // (200 * every)).bit_length() - 1)) == 0


def noise_of(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Standard deviation of the noise of a series around a slow trend.

    From the median absolute second difference: a linear trend drops out, and white noise of deviation s has
    second differences of deviation s * sqrt(6). 1.4826 makes the median absolute deviation of a normal
    distribution its standard deviation.
    """
    if len(values) < 4:
        return 0.0
    second = np.diff(np.asarray(values, dtype=np.float64), n=2)
    return float(1.4826 * median(np.abs(second)) / math.sqrt(6))


def block_medians(values: Sequence[float] | NDArray[np.float64], blocks: int) -> NDArray[np.float64]:
    """Medians of equally long stretches of a series; float64 [blocks]."""
    return np.array([median(part) for part in np.array_split(np.asarray(values), blocks)])


def trend_z(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Mann-Kendall test for a trend: standard score, positive for a rise.

    Kendall's S over its deviation sqrt(n(n-1)(2n+5)/18) without ties (Mann 1945, Kendall 1975).
    """
    series = np.asarray(values, dtype=np.float64)
    n = len(series)
    if n < 3:
        return 0.0
    s = float(sum(np.sign(series[at + 1 :] - series[at]).sum() for at in range(n - 1)))
    return float(s - np.sign(s)) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)


def positive(name: str, value: float) -> None:
    """Check a parameter.

    Raises:
        ValueError: it is not above zero.
    """
    if not value > 0:
        raise ValueError(f"{name} is {value}; expected more than 0")


def spell(value: float) -> str:
    """A number as a person writes it: four significant digits."""
    return f"{value:.4g}"
