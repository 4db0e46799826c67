"""A rule about first steps that were too large: the warm-up that is missing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stepwatch.probe.store.schema import UPDATE_QUANTITY
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import TrainingLoss, median, positive, spell
from stepwatch.rules.step import Step

_EARLY = 10  # steps in which the first update must have been measured
_AT_ONCE = 0.9  # of the highest rate: no warm-up
_BLOCK = 5  # losses
_JUMPED = 1.5  # of the first loss
_OUT_OF_LINE = 5.0  # times the updates that came later


class MissingWarmUp(Rule):
    """The first updates tore the weights apart, and the loss has not come back: the learning rate was not warmed up.

    Most jobs need no warm-up, and it is missed only where that shows: the learning rate began at its highest; the first
    update that was measured, in the first 10 steps, replaced more than ``ratio`` of the weights and more than five
    times as much as the median of those measured since, so that the rate suits the later steps; the loss jumped to
    1.5 times its first value; and ``patience`` steps later the median of the last five is still above the first.
    Where later updates are as large the rate is too high throughout, which is UpdateTooLarge's to say; a jump that
    comes back sooner does no harm.

    Args:
        ratio: norm of the first change over norm of the weights.
        patience: steps after which the loss must be back, at least 20.
    """

    severity = Severity.WARNING
    calibrated = (("ratio", "higher"),)

    def __init__(self, *, ratio: float = 0.1, patience: int = 30) -> None:
        positive("ratio", ratio)
        if patience < 4 * _BLOCK:
            raise ValueError(f"patience is {patience}; expected {4 * _BLOCK} steps or more")
        self.ratio = ratio
        self.patience = patience
        self._loss = TrainingLoss()
        self._first_rate: float | None = None
        self._highest_rate = 0.0
        self._updates: list[tuple[int, float]] = []
        self._highest = -np.inf
        self._judged = False
        self._margin = 0.0

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training or self._judged:
            return
        rates = [value for name, value in step.scalars.items() if name.startswith("learning_rate")]
        if rates:
            self._first_rate = max(rates) if self._first_rate is None else self._first_rate
            self._highest_rate = max(self._highest_rate, *rates)
        measured = [
            v[0] / v[1] for (_, quantity), v in step.derived.items() if quantity == UPDATE_QUANTITY and v[1] > 0
        ]
        if measured:
            self._updates.append((step.step, float(np.median(measured))))
        if self._loss.observe(step) is None:
            return
        if self._loss.count % _BLOCK == 0:
            self._highest = max(self._highest, median(self._loss.values[-_BLOCK:]))
        if self._loss.count > self.patience and len(self._updates) > 1:
            self._judged = True
            yield from self._judge(step)

    def _judge(self, step: Step) -> Iterator[Finding]:
        (at, first), *later = self._updates
        start, now = self._loss.values[0], median(self._loss.values[-_BLOCK:])
        sound = np.isfinite([start, now, self._highest]).all() and not self._loss.signed
        if at >= _EARLY or not sound or self._first_rate is None or start <= 0:
            return
        self._margin = min(first / self.ratio, self._highest / (_JUMPED * start), now / start, 1.0)
        usual = float(np.median([ratio for _, ratio in later]))
        cold = self._first_rate >= _AT_ONCE * self._highest_rate
        if not cold or first < max(self.ratio, _OUT_OF_LINE * usual):
            return
        if self._highest < _JUMPED * start or now <= start:
            return
        yield self.finding(
            step,
            first_step=self._loss.steps[0],
            tensors=[self._loss.name],
            value=first,
            threshold=self.ratio,
            message=f"the update of step {at} replaced {spell(100 * first)} % of the weights, later ones "
            f"{spell(100 * usual)} %; the loss jumped from {spell(start)} to {spell(self._highest)} and is "
            f"{spell(now)} after {self._loss.count} steps: the learning rate began at its full height",
            suggestion="let the learning rate rise from near zero over the first hundred steps or more; a smaller rate "
            "or clipping by norm help, too",
            evidence={"series": [self._loss.name, "learning_rate"], "unit": "loss"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        coverage = self._loss.coverage(self.patience + 1, self._margin, self._loss.name, progress=True)
        missing = list(coverage.missing)
        if len(self._updates) < 2 or self._updates[0][0] >= _EARLY:
            missing.append(f"an update measured in the first {_EARLY} steps, and a later one")
        if self._first_rate is None:
            missing.append("no learning rate was recorded")
        coverage.missing, coverage.decided = tuple(missing), not missing
        return coverage
