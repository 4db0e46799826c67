"""Rules about what training achieves: nothing, no bound, no information about the labels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import (
    EvalCurve,
    LabelCounts,
    RisingRate,
    TrainingLoss,
    block_medians,
    due,
    noise_of,
    positive,
    spell,
    trend_z,
)
from stepwatch.rules.step import Step

_EVERY = 50  # steps between two looks at a series
_SUMS = 128


class StalledLoss(Rule):
    """The training loss never came down: the model has learned nothing.

    Judged over the steps since the learning rate stopped rising, once there are ``min_steps``: their losses,
    in 10 stretches, end less than ``gain`` below where they began, in relation to their size, show no falling
    trend (Mann-Kendall, z > -2), and are quiet enough to be sure of it: three standard errors of the
    difference between their halves would not make up for ``gain``. A small trend does not save a run whose
    evaluation loss, over at least three evaluations, has not improved by ``gain`` either.

    A loss that is flat because the model had converged before (a fine-tuning) looks the same; so where the
    labels of a classifier are known the level is held against the entropy of their frequencies, which is
    the loss of guessing: clearly below it (by more than ``guess``) there is no finding. Near it there is a
    warning, and an error when it is still so after four times as many steps: some problems give way late.
    Without that knowledge it is a warning after three times as many steps.

    Args:
        min_steps: steps before it judges.
        gain: relative improvement below which nothing was learned.
        guess: relative distance from the loss of guessing that still counts as guessing.
    """

    derived = ("class_counts",)
    calibrated = (("gain", "lower"),)

    def __init__(self, *, min_steps: int = 300, gain: float = 0.02, guess: float = 0.05) -> None:
        positive("min_steps", min_steps)
        positive("gain", gain)
        positive("guess", guess)
        self.min_steps = min_steps
        self.gain = gain
        self.guess = guess
        self._loss = TrainingLoss()
        self._evals = EvalCurve()
        self._labels = LabelCounts()
        self._rate = RisingRate()
        self._begin = 0
        self._said: Severity | None = None
        self._margin = 0.0

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        self._labels.observe(step)
        self._evals.observe(step)
        value = self._loss.observe(step)
        if self._rate.observe(step):
            self._begin = self._loss.count
        count = self._loss.count - self._begin
        if value is None or self._said is Severity.ERROR or count < self.min_steps or not due(count, 50):
            return
        if self._loss.signed:
            return
        values = np.array(self._loss.values[self._begin :])
        if not np.isfinite(values).all():
            return
        medians = block_medians(values, 10)
        began, level = float(medians[0]), float(medians[-1])
        gained = (began - level) / max(abs(began), 1e-12)
        self._margin = max(self._margin, min(self.gain / max(gained, 1e-12), 1.0))
        if gained >= self.gain or began <= 0 or medians.min() < began * (1 - 2 * self.gain):
            return
        if trend_z(medians) <= -2 and not self._evaluations_are_flat():
            return
        halves = block_medians(values, 2)
        error = 1.25 * noise_of(values) * math.sqrt(4 * self._loss.values.stride / count)
        if (halves[0] - halves[1] + 3 * error) / began >= self.gain:
            return
        guessing = self._labels.loss_of_guessing()
        if count < 3 * self.min_steps if guessing is None else level < guessing * (1 - self.guess):
            return
        sure = guessing is not None and count >= 4 * self.min_steps
        severity = Severity.ERROR if sure else Severity.WARNING
        if severity is self._said:
            return
        self._said = severity
        against = "" if guessing is None else f"; guessing by class frequency gives {spell(guessing)}"
        yield self.finding(
            step,
            first_step=self._loss.steps[self._begin],
            tensors=[self._loss.name],
            value=level,
            threshold=began * (1 - self.gain) if guessing is None else guessing,
            message=f"the training loss is {spell(level)} after {count} steps and began at {spell(began)}: "
            f"nothing was learned{against}",
            suggestion="check that labels belong to their inputs, that gradients reach the weights and the "
            "optimizer holds them, and that the learning rate is not far too small or too large; try to "
            "overfit a single batch first",
            evidence={"series": [self._loss.name], "unit": "loss"},
            severity=severity,
        )

    def _evaluations_are_flat(self) -> bool:
        values = self._evals.values
        return len(values) >= 3 and not min(values) < values[0] * (1 - self.gain)

    def coverage(self) -> Coverage:
        """See the base class."""
        return self._loss.coverage(self.min_steps + self._begin, self._margin, self._loss.name, progress=True)


class UnboundedLoss(Rule):
    """The training loss falls below zero without bound, and ever faster: what is minimised has no minimum.

    A likelihood goes below zero too, and slower and slower. It fires where the last losses are below zero by more
    than ``factor`` times the largest magnitude of the first tenth of the run, and the later half of the run took the
    loss down by more than one and a half times as much as the earlier half.

    Args:
        factor: multiple of the first losses, above 1.
        min_steps: steps before it judges, at least 50.
    """

    severity = Severity.WARNING
    calibrated = (("factor", "higher"),)

    def __init__(self, *, factor: float = 20.0, min_steps: int = 200) -> None:
        if not factor > 1:
            raise ValueError(f"factor is {factor}; expected more than 1")
        if min_steps < _EVERY:
            raise ValueError(f"min_steps is {min_steps}; expected {_EVERY} or more")
        self.factor = factor
        self.min_steps = min_steps
        self._loss = TrainingLoss()
        self._margin = 0.0
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        value = self._loss.observe(step)
        count = self._loss.count
        if value is None or self._fired or count < self.min_steps or not due(count, _EVERY) or self._loss.signed:
            return
        values = np.array(self._loss.values)
        few = max(count // 20, 5)
        first = float(np.abs(values[: count // 10]).max())
        start, middle, end = (float(np.median(part)) for part in (values[:few], _around(values, few), values[-few:]))
        if not np.isfinite([first, start, middle, end]).all() or first == 0:
            return
        size = -end / first
        self._margin = max(self._margin, size / self.factor)
        if size > self.factor and start > middle and middle - end > 1.5 * (start - middle):
            self._fired = True
            yield self.finding(
                step,
                first_step=self._loss.steps[count // 2],
                tensors=[self._loss.name],
                value=end,
                threshold=-self.factor * first,
                message=f"the training loss has fallen from {spell(start)} to {spell(end)}, {size:.0f} times its first "
                "size, and falls faster and faster: nothing bounds it from below",
                suggestion="check the sign of the loss and of each of its terms, and that logits, not probabilities, "
                "go where logits belong; bound what is maximised",
                evidence={"series": [self._loss.name], "unit": "loss"},
            )

    def coverage(self) -> Coverage:
        """See the base class."""
        return self._loss.coverage(self.min_steps, self._margin, self._loss.name, progress=True)


def _around(values: NDArray[np.float64], few: int) -> NDArray[np.float64]:
    middle = len(values) // 2
    return values[middle - few // 2 : middle - few // 2 + few]


class NoBetterThanGuessing(Rule):
    """At the end of a run the classifier's predictions still carry no information about the labels.

    Whatever classes are predicted, and however often: where predictions do not depend on the labels, the shares of
    the classes that are predicted right add up to 1, so that their mean (the balanced accuracy) is one over the
    number of classes. It fires where the balanced accuracy over the training batches of the last third of the run is
    not above that by ``excess`` of what could be gained, and by three standard errors. Judged when the run has ended,
    and at ``steps`` steps; the end of a warm-up is no time to judge.

    Args:
        excess: share of the way from guessing to all right, in (0, 1).
        min_steps: a run that ended before is not judged, at least 50.
        steps: steps after which a run that goes on is judged.
    """

    severity = Severity.WARNING
    derived = ("class_counts",)
    calibrated = (("excess", "lower"),)

    def __init__(self, *, excess: float = 0.05, min_steps: int = 200, steps: int = 5000) -> None:
        if not 0 < excess < 1:
            raise ValueError(f"excess is {excess}; expected a number in (0, 1)")
        if min_steps < _EVERY:
            raise ValueError(f"min_steps is {min_steps}; expected {_EVERY} or more")
        positive("steps", steps)
        self.excess = excess
        self.min_steps = min_steps
        self.steps = steps
        self._name = ""
        self._seen = _Counts()
        self._last: Step | None = None
        self._count = 0
        self._better: float | None = None
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training:
            return
        self._count += 1
        self._last = step
        for (name, quantity), vector in step.derived.items():
            if quantity == "class_counts" and (not self._name or name == self._name):
                self._name = name
                self._seen.append(step.step, vector.reshape(2, -1))
        if self._count == self.steps:
            yield from self._judge()

    def conclude(self) -> Iterator[Finding]:
        """See the base class."""
        if self._count >= self.min_steps:
            yield from self._judge()

    def _judge(self) -> Iterator[Finding]:
        recent = self._seen.latest_third()
        if recent is None or self._last is None or self._fired:
            return
        first, (labels, right) = recent
        here = np.flatnonzero(labels)
        classes = len(here)
        if classes < 2 or labels.sum() < 30 * classes:
            return
        recall = right[here] / labels[here]
        guessing = 1 / classes
        accuracy = float(recall.mean())
        error = float(np.sqrt((np.maximum(recall * (1 - recall), 0.01) / labels[here]).sum()) / classes)
        limit = guessing + self.excess * (1 - guessing)
        self._better = (accuracy - guessing) / (limit - guessing)
        if accuracy > limit or accuracy - guessing > 3 * error:
            return
        self._fired = True
        yield self.finding(
            self._last,
            first_step=first,
            tensors=[self._name],
            value=accuracy,
            threshold=limit,
            message=f"after {self._count} steps the predictions are no better than guessing: each of the {classes} "
            f"classes is predicted right in {100 * accuracy:.1f} % of its samples on average, guessing gives "
            f"{100 * guessing:.1f} %",
            suggestion="check that labels and inputs belong together (shuffled apart, an index shifted by one), that "
            "the inputs hold what the labels ask for, and that the rate and the gradients let the model learn at all",
            evidence={"series": [self._name], "quantity": "class_counts", "unit": "samples"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._seen.count:
            missing = ("no labels of a cross-entropy loss were recorded",)
        elif self._better is None and not self._fired:
            missing = (f"a run that has ended after {self.min_steps} steps or more, with 30 labels of each class",)
        return Coverage(
            decided=not missing,
            steps=self._seen.count,
            first_step=self._seen.first,
            last_step=self._seen.last,
            tensors=1 if self._name else 0,
            missing=missing,
            margin=None if self._better is None else 1 / max(self._better, 1.0),
            closest=self._name,
        )


class _Counts:
    """How often each class was a label, and was predicted right; neighbouring steps are added up as a run grows.

    Attributes:
        count: how many steps were counted.
        first, last: the first and the latest of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None
        self.last: int | None = None
        self._sums: list[tuple[int, NDArray[np.float64]]] = []  # first step, [labels and right, classes]
        self._of_each = 1  # steps that a sum holds
        self._in_last = 0

    def append(self, step: int, counts: NDArray[np.float64]) -> None:
        """Take in float64 [labels and right, classes] of a step."""
        same = bool(self._sums) and self._sums[-1][1].shape == counts.shape
        if self._sums and not same:
            self._sums, self._of_each, self._in_last = [], 1, 0
        self.count += 1
        self.first = step if self.first is None else self.first
        self.last = step
        if 0 < self._in_last < self._of_each:
            self._sums[-1][1][:] += counts
            self._in_last += 1
            return
        if len(self._sums) == _SUMS:
            pairs = zip(self._sums[::2], self._sums[1::2], strict=True)
            self._sums = [(first, one + other) for (first, one), (_, other) in pairs]
            self._of_each *= 2
        self._sums.append((step, counts.astype(np.float64)))
        self._in_last = 1

    def latest_third(self) -> tuple[int, NDArray[np.float64]] | None:
        """First step and sum of about the last third; None where ten steps were not seen yet."""
        if self.count < 10:
            return None
        latest = self._sums[-max(len(self._sums) // 3, 1) :]
        return latest[0][0], np.sum([counts for _, counts in latest], axis=0)
