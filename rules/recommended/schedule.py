"""Rules about the schedule of the learning rate."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import History
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import TrainingLoss, block_medians, due, noise_of, positive, spell, trend_z
from stepwatch.rules.step import Step

_OF_FIRST_OPTIMIZER = re.compile(r"learning_rate(/group_\d+)?$")
_KEPT = 512
_EVERY = 20  # steps between two looks at a series
_NOTHING = 0.1  # of the share below which a rate is spent
_IDLE = 2 / 3  # of all steps
_SUGGESTION = (
    "make the schedule as long as the job: check its number of steps, and whether its counter counts epochs or steps; "
    "or stop here and train on with a higher rate"
)


class _RateAndLoss(Rule):
    """Keeps the training loss and the highest rate of the first optimizer's groups, step by step."""

    severity = Severity.WARNING
    needed = 100

    def __init__(self) -> None:
        self._loss = TrainingLoss()
        self._rates: History[float] = History("d", _KEPT)
        self._margin = 0.0
        self._fired = False

    def _observe(self, step: Step) -> bool:
        """Take note of a step; whether it is time to judge."""
        if not step.training or self._fired:
            return False
        rates = [rate for name, rate in step.scalars.items() if _OF_FIRST_OPTIMIZER.match(name)]
        if not rates or self._loss.observe(step) is None:
            return False
        self._rates.append(max(rates))
        return len(self._rates) >= self.needed and due(len(self._rates), _EVERY) and not self._loss.signed

    def coverage(self) -> Coverage:
        """See the base class."""
        if not self._rates:
            return Coverage(missing=("no step with a training loss and a learning rate was recorded",))
        return self._loss.coverage(self.needed, self._margin, "learning_rate", progress=True)


class LearningRateDecayedEarly(_RateAndLoss):
    """A schedule has brought the learning rate to next to nothing while the loss was still falling.

    The rate counts as spent while it is below ``share`` of its highest value. It fires where it has been spent for at
    least a quarter of all steps so far, where in the last quarter of the steps before the loss had fallen by at least
    ``falling`` of everything that was gained until then, with a falling trend (Mann-Kendall, z < -2.5), and where less
    than that was gained since. A schedule that ends where the job ends is spent for a few per cent of its steps; one
    that ends when the loss has become flat, and one that restarts, are no findings.

    Where the batches are so noisy that the loss cannot tell, the schedule does: it fires as well where the rate has
    been below a tenth of that ``share`` for two thirds of all steps, whatever the loss did before.

    Args:
        share: share of the highest rate below which it is spent, in (0, 0.5).
        falling: share of what was gained that the last quarter of the steps before must have brought, in (0, 1).
    """

    calibrated = (("falling", "higher"),)

    def __init__(self, *, share: float = 0.01, falling: float = 0.05) -> None:
        super().__init__()
        if not 0 < share < 0.5:
            raise ValueError(f"share is {share}; expected a number in (0, 0.5)")
        if not 0 < falling < 1:
            raise ValueError(f"falling is {falling}; expected a number in (0, 1)")
        self.share = share
        self.falling = falling

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if self._observe(step):
            yield from self._judge(step)

    def _judge(self, step: Step) -> Iterator[Finding]:
        rates = np.array(self._rates)
        highest = rates.max()
        in_use = np.flatnonzero(rates >= self.share * highest)
        spent = int(in_use[-1]) + 1 if highest > 0 else 0  # from here on
        if spent < self.needed // 4 or len(rates) - spent < len(rates) / 4 or not rates[-1] > 0:
            return
        yield from self._judge_loss(step, rates, spent) or self._judge_rate(step, rates)

    def _judge_rate(self, step: Step, rates: NDArray[np.float64]) -> list[Finding]:
        nothing = _NOTHING * self.share * rates.max()
        idle = len(rates) - 1 - int(np.flatnonzero(rates >= nothing)[-1])
        if idle < _IDLE * len(rates):
            return []
        self._fired = True
        since = self._loss.steps[len(rates) - idle]
        return [
            self.finding(
                step,
                first_step=since,
                tensors=[self._loss.name],
                value=idle / len(rates),
                threshold=_IDLE,
                message=f"the learning rate has been below {100 * _NOTHING * self.share:.3g} % of its highest since "
                f"step {since}, for {idle} of {len(rates)} steps: nothing more is learned",
                suggestion=_SUGGESTION,
                evidence={"series": [self._loss.name, "learning_rate"], "unit": "share of the steps"},
            )
        ]

    def _judge_loss(self, step: Step, rates: NDArray[np.float64], spent: int) -> list[Finding]:
        # Near its end a schedule takes such small steps that the loss is flat: what counts is how it fell before.
        at_work = int(np.flatnonzero(rates >= rates.max() / 10)[-1]) + 1
        values = np.array(self._loss.values)
        before, after = values[:at_work], values[spent:]
        if not np.isfinite(values).all() or at_work < self.needed // 8:
            return []
        quarters = block_medians(before, 4)
        start, level, end = (
            float(np.median(values[:5])),
            float(quarters[3]),
            float(np.median(after[-len(after) // 2 :])),
        )
        gained, lately = start - level, float(quarters[2] - quarters[3])
        half = before[len(before) // 2 :]
        if gained <= 0 or trend_z(block_medians(half, min(len(half), 40))) > -2.5:
            return []
        self._margin = max(self._margin, lately / gained / self.falling)
        if lately < self.falling * gained or level - end > lately:
            return []
        self._fired = True
        return [
            self.finding(
                step,
                first_step=self._loss.steps[spent],
                tensors=[self._loss.name],
                value=lately / gained,
                threshold=self.falling,
                message=f"the learning rate has been below {100 * self.share:.3g} % of its highest since step "
                f"{self._loss.steps[spent]}, for {len(after)} of {len(rates)} steps; the loss was still falling then "
                f"(by {100 * lately / gained:.0f} % of all that was gained in the last quarter before) and stands at "
                f"{spell(end)} since",
                suggestion=_SUGGESTION,
                evidence={"series": [self._loss.name, "learning_rate"], "unit": "loss"},
            )
        ]


class LearningRateGrowing(_RateAndLoss):
    """The learning rate grows on and on, and has grown too high: the loss has been rising since.

    It fires where the rate has reached a new height in each of the last ``blocks`` stretches of 20 steps, is at least
    twice what it was when the loss was lowest, and the loss has given back ``share`` of what was gained until then,
    by more than three times its noise. A warm-up grows too, while the loss falls or stays.

    Args:
        share: share of what was gained that is lost again, above 0.
        blocks: stretches of 20 steps, at least 2.
    """

    calibrated = (("share", "higher"),)

    def __init__(self, *, share: float = 0.5, blocks: int = 5) -> None:
        super().__init__()
        positive("share", share)
        if blocks < 2:
            raise ValueError(f"blocks is {blocks}; expected 2 or more")
        self.share = share
        self.blocks = blocks

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if self._observe(step):
            yield from self._judge(step)

    def _judge(self, step: Step) -> Iterator[Finding]:
        count = len(self._rates) // _EVERY
        values = np.array(self._loss.values)[-count * _EVERY :].reshape(count, _EVERY)
        rates = np.array(self._rates)[-count * _EVERY :].reshape(count, _EVERY).max(1)
        heights = np.maximum.accumulate(rates)
        if count <= self.blocks or not (np.diff(heights[-self.blocks - 1 :]) > 0).all():
            return
        losses = np.median(values, axis=1)
        if not np.isfinite(losses[:-1]).all():
            return
        best = int(losses.argmin())
        start, lowest, now = float(np.median(values[0, :5])), float(losses[best]), float(losses[-1])
        noise = 1.25 * noise_of(values[max(best - 2, 0) : best + 3].ravel()) / math.sqrt(_EVERY)
        gained = start - lowest
        if best == 0 or best == count - 1 or gained <= 3 * noise or rates[-1] < 2 * rates[best]:
            return
        lost = (now - lowest) / gained
        self._margin = max(self._margin, lost / self.share)
        if lost < self.share or now - lowest < 3 * noise or losses[-1] < losses[-2]:
            return
        self._fired = True
        at = self._loss.steps[-count * _EVERY + best * _EVERY]
        yield self.finding(
            step,
            first_step=at,
            tensors=[self._loss.name],
            value=lost,
            threshold=self.share,
            message=f"the learning rate is still growing, {spell(rates[-1])} now; the loss was lowest "
            f"({spell(lowest)}) around step {at}, at a rate of {spell(rates[best])}, and is {spell(now)} now",
            suggestion="let the schedule end its growth at or below the rate of the lowest loss, and decay from there; "
            "check the factor and the number of warm-up steps",
            evidence={"series": [self._loss.name, "learning_rate"], "unit": "loss"},
        )
