"""Rules about the course of the training loss."""

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
    TrainingLoss,
    block_medians,
    due,
    noise_of,
    positive,
    spell,
    trend_z,
)
from stepwatch.rules.step import Step

_START = 5


class DivergingLoss(Rule):
    """The training loss has left for good: not a number, or far above where it began, and rising.

    Every one of the last ``window`` losses lies above ``start + factor * max(|start|, noise)``, where start is
    the median of the first five, and the later half of the window is not below the earlier: a spike that
    comes back, an unlucky first step or a restart of the schedule does not do that. A loss that is not
    finite in two consecutive steps has diverged at once.

    Args:
        window: steps that it must stay there.
        factor: how far above its start, in multiples of the start.
    """

    calibrated = (("factor", "higher"),)

    def __init__(self, *, window: int = 8, factor: float = 3.0) -> None:
        positive("window", window)
        positive("factor", factor)
        self.window = window
        self.factor = factor
        self._loss = TrainingLoss()
        self._start: tuple[float, float] | None = None  # level and noise
        self._fired = False
        self._margin = 0.0

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        value = self._loss.observe(step)
        if value is None or self._fired:
            return
        values = self._loss.values
        if len(values) >= 2 and not math.isfinite(values[-1]) and not math.isfinite(values[-2]):
            self._fired = True
            yield self._say(step, self._loss.steps[-2], value, math.inf, f"became {value}")
            return
        if len(values) < _START + self.window:
            return
        if self._start is None:
            self._start = float(np.median(values[:_START])), noise_of(values[:_START])
        start, noise = self._start
        if not math.isfinite(start):
            return
        limit = start + self.factor * max(abs(start), noise, 1e-12)
        recent = values[-self.window :]
        lowest = min(recent)
        if lowest > start:
            self._margin = max(self._margin, (lowest - start) / (limit - start))
        half = self.window // 2
        if lowest > limit and np.median(recent[half:]) >= np.median(recent[:half]):
            self._fired = True
            below = [at for at, loss in enumerate(values) if not loss > limit]
            first = self._loss.steps[below[-1] + 1 if below else 0]
            said = f"rose from {spell(start)} at the start to {spell(value)}"
            yield self._say(step, first, value, limit, said)

    def _say(self, step: Step, first: int, value: float, limit: float, what: str) -> Finding:
        return self.finding(
            step,
            first_step=first,
            tensors=[self._loss.name],
            value=value,
            threshold=limit,
            message=f"the training loss {what} by step {step.step}, and does not come back",
            suggestion="lower the learning rate (a factor of 10 is a good first try), add warm-up or gradient "
            "clipping, and go back to a checkpoint from before the rise",
            evidence={"series": [self._loss.name], "unit": "loss"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        return self._loss.coverage(_START + self.window, self._margin, self._loss.name)


class LossNotDecreasing(Rule):
    """The training loss had come down, and has been climbing since.

    The run so far is cut into 20 stretches of equal length. The rule fires when the median of each of the
    last four lies above the lowest one by more than ``share`` of what had been gained since the start and by
    more than ``sigmas`` of the noise of a stretch's median, with a rising trend from the lowest on
    (Mann-Kendall, z > 2). A restart of the schedule or a change of data makes the loss jump and then fall
    again, which is no rising trend. A loss that is of both signs or below zero at its start is not judged: that of
    a policy may climb while the policy gets better.

    Args:
        min_steps: steps before it judges.
        share: part of the gain that must be lost again.
        sigmas: distance in standard errors.
    """

    severity = Severity.WARNING
    calibrated = (("share", "higher"),)

    def __init__(self, *, min_steps: int = 200, share: float = 0.5, sigmas: float = 6.0) -> None:
        positive("min_steps", min_steps)
        positive("share", share)
        positive("sigmas", sigmas)
        self.min_steps = min_steps
        self.share = share
        self.sigmas = sigmas
        self._loss = TrainingLoss()
        self._fired = False
        self._margin = 0.0

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        value = self._loss.observe(step)
        count = self._loss.count
        if value is None or self._fired or count < self.min_steps or not due(count, 10):
            return
        values = np.array(self._loss.values)
        if self._loss.signed or self._loss.below_zero or not np.isfinite(values).all():
            return
        medians = block_medians(values, 20)
        lowest = int(medians.argmin())
        if lowest > 14 or lowest == 0:
            return
        gained = medians[0] - medians[lowest]
        error = 1.25 * noise_of(values) / math.sqrt(count / self._loss.values.stride / 20)
        limit = medians[lowest] + max(self.share * gained, self.sigmas * error)
        lasting = float(medians[-4:].min())
        self._margin = max(self._margin, (lasting - medians[lowest]) / (limit - medians[lowest] + 1e-300))
        if lasting > limit and trend_z(medians[lowest:]) > 2:
            self._fired = True
            first = self._loss.steps[min(int((lowest + 1) * count / 20), count - 1)]
            yield self.finding(
                step,
                first_step=first,
                tensors=[self._loss.name],
                value=lasting,
                threshold=limit,
                message=f"the training loss had fallen to {spell(medians[lowest])} around step {first} and has "
                f"climbed to {spell(lasting)} since",
                suggestion="lower the learning rate or let it decay sooner; look for a change in the data or "
                "the schedule around that step",
                evidence={"series": [self._loss.name], "unit": "loss"},
            )

    def coverage(self) -> Coverage:
        """See the base class."""
        coverage = self._loss.coverage(self.min_steps, self._margin, self._loss.name, progress=True)
        if self._loss.below_zero:
            lack = "a training loss that is below zero at its start: it is no measure of progress"
            coverage.missing, coverage.decided = (*coverage.missing, lack), False
        return coverage


class OscillatingLoss(Rule):
    """The loss swings from step to step instead of settling: the learning rate is too high.

    Mini-batch noise is independent from step to step, and a model that learns falls below its start in spite
    of it. Three signs are told apart from that:

    - each step undoes the one before: the lag-1 autocorrelation around the trend of a ``window`` is below
      ``-anticorrelation`` (noise: 0; two complementary batches per epoch: -0.5), twice in a row, with a
      swing of more than 20 % of a level that does not fall and is above a tenth of the start;
    - a classifier's loss stays 30 % and more above that of guessing by class frequency over two windows, does
      not fall, and its noise is more than 5 % of it: it bounces off the walls of the valley;
    - the loss on held-out data, which has no mini-batch noise, turns at nearly every one of 12 evaluations
      by more than half of its level, without a falling trend.

    Args:
        window: steps of a window.
        anticorrelation: how strongly a step must be answered by the next, in (0, 1).
    """

    severity = Severity.WARNING
    derived = ("class_counts",)
    calibrated = (("anticorrelation", "higher"),)

    def __init__(self, *, window: int = 50, anticorrelation: float = 0.7) -> None:
        if window < 20:
            raise ValueError(f"window is {window}; expected 20 steps or more")
        if not 0 < anticorrelation < 1:
            raise ValueError(f"anticorrelation is {anticorrelation}; expected a number in (0, 1)")
        self.window = window
        self.anticorrelation = anticorrelation
        self._loss = TrainingLoss()
        self._evals = EvalCurve()
        self._labels = LabelCounts()
        self._swinging = 0
        self._previous_level = math.inf
        self._fired = False
        self._margin = 0.0

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if self._fired:
            return
        self._labels.observe(step)
        if self._evals.observe(step):
            yield from self._judge_evaluations(step)
        value = self._loss.observe(step)
        count = self._loss.count
        if value is None or self._fired or count < 3 * self.window or count % self.window:
            return
        values = np.array(self._loss.values[-2 * self.window :])
        if np.isfinite(values).all() and np.median(values) > 0:
            yield from self._judge_undoing(step, values[-self.window :])
            if not self._fired:
                yield from self._judge_bouncing(step, values)

    def _judge_undoing(self, step: Step, values: NDArray[np.float64]) -> Iterator[Finding]:
        level = float(np.median(values))
        swing, correlation = _swing(values)
        falling = level < 0.97 * self._previous_level
        self._previous_level = level
        large = swing > 0.2 * level > 0.02 * abs(float(np.median(self._loss.values[:_START])))
        if not large or falling:
            self._swinging = 0
            return
        self._margin = max(self._margin, -correlation / self.anticorrelation)
        self._swinging = self._swinging + 1 if correlation < -self.anticorrelation else 0
        if self._swinging == 2:
            yield self._say(
                step,
                self._loss.steps[-2 * self.window],
                self._loss.name,
                correlation,
                -self.anticorrelation,
                f"the training loss swings by {100 * swing / level:.0f} % around {spell(level)}: each step "
                f"undoes the one before (autocorrelation {correlation:.2f}; noise has about 0)",
            )

    def _judge_bouncing(self, step: Step, values: NDArray[np.float64]) -> Iterator[Finding]:
        guessing = self._labels.loss_of_guessing()
        if guessing is None:
            return
        medians = block_medians(values, 4)
        noise = noise_of(values) / float(np.median(values))
        if medians.min() > 1.3 * guessing and medians[-1] > 0.8 * medians[0] and noise > 0.05:
            yield self._say(
                step,
                self._loss.steps[-2 * self.window],
                self._loss.name,
                float(medians.min()),
                1.3 * guessing,
                f"the training loss bounces around {spell(np.median(values))} (by {100 * noise:.0f} % from "
                f"step to step), worse than guessing by class frequency ({spell(guessing)}), and does not fall",
            )

    def _judge_evaluations(self, step: Step) -> Iterator[Finding]:
        values = np.array(self._evals.values[-12:])
        if len(values) < 12 or not np.isfinite(values).all() or values.min() <= 0:
            return
        moves = np.diff(values)
        turns = int((np.sign(moves[1:]) != np.sign(moves[:-1])).sum())
        size = float(np.median(np.abs(moves)) / np.median(values))
        if turns >= 8 and size > 0.5 and trend_z(values) > -1.5:
            yield self._say(
                step,
                self._evals.steps[-12],
                self._evals.name,
                size,
                0.5,
                f"the evaluation loss jumps by {100 * size:.0f} % of its level from one evaluation to the "
                f"next and turned {turns} times in 12",
            )

    def _say(self, step: Step, first: int, series: str, value: float, threshold: float, message: str) -> Finding:
        self._fired = True
        return self.finding(
            step,
            first_step=first,
            tensors=[series],
            value=value,
            threshold=threshold,
            message=message,
            suggestion="lower the learning rate (halve it, then by 10) or let it decay; less momentum or a "
            "larger batch damps it too",
            evidence={"series": [series], "unit": "loss"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        return self._loss.coverage(3 * self.window, self._margin, self._loss.name)


def _swing(values: NDArray[np.float64]) -> tuple[float, float]:
    """(standard deviation, lag-1 autocorrelation) of a window around its linear trend."""
    at = np.arange(len(values))
    rest = values - np.polyval(np.polyfit(at, values, 1), at)
    spread = float(rest.std())
    if spread == 0:
        return 0.0, 0.0
    return spread, float((rest[1:] * rest[:-1]).mean() / spread**2)
