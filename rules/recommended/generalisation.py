"""Rules that hold evaluation against training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import History
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import EvalCurve, TrainingLoss, noise_of, positive, spell, trend_z
from stepwatch.rules.step import Step

_SIGMAS = 6.0


class Overfit(Rule):
    """The evaluation loss has turned up while the training loss goes on falling.

    Measured from the evaluation with the lowest loss, ``patience`` of them or more after it: it fires when the mean of
    the last ``patience`` lies above the median of the lowest and its neighbours by more than ``rise`` and by more than
    six standard errors of the difference, as the noise between evaluations has it (the lowest of many is low by chance,
    and every evaluation is a look), the last two lie above the lowest by ``rise`` each, they trend upwards since the
    lowest (Mann-Kendall, z > 2, over the evaluations from there), and the training loss has fallen by more than
    ``fall`` of its level in the same time.

    Args:
        patience: evaluations after the lowest that must confirm it, at least 2.
        rise: rise of the evaluation loss, relative to its lowest value.
        fall: fall of the training loss since, relative to its level then.
    """

    severity = Severity.WARNING
    calibrated = (("rise", "higher"),)

    def __init__(self, *, patience: int = 5, rise: float = 0.1, fall: float = 0.05) -> None:
        if patience < 2:
            raise ValueError(f"patience is {patience}; expected 2 or more")
        positive("rise", rise)
        positive("fall", fall)
        self.patience = patience
        self.rise = rise
        self.fall = fall
        self._training = TrainingLoss()
        self._evals = EvalCurve()
        self._train_levels: History[float] = History("d", 256)
        self._since = 0
        self._last: Step | None = None
        self._fired = False
        self._margin = 0.0

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if self._evals.observe(step):
            yield from self._evaluated(step)
        self._training.observe(step)
        self._last = step

    def conclude(self) -> Iterator[Finding]:
        """See the base class."""
        if self._last is not None and self._evals.finish():
            yield from self._evaluated(self._last)

    def _evaluated(self, step: Step) -> Iterator[Finding]:
        recent = self._training.values[self._since :]
        self._since = len(self._training.values)
        self._train_levels.append(float(np.mean(recent)) if recent else math.nan)
        if not self._fired:
            yield from self._judge(step)

    def _judge(self, step: Step) -> Iterator[Finding]:
        values = np.array(self._evals.values)
        if len(values) <= self.patience or not np.isfinite(values).all():
            return
        best = int(values.argmin())
        lowest = float(values[best])
        if best > len(values) - 1 - self.patience or lowest <= 0:
            return
        around = values[max(best - 1, 0) : best + 2]
        error = noise_of(values) * math.sqrt(1 / self.patience + 1 / len(around))
        least = float(np.median(around))
        limit = least + max(self.rise * least, _SIGMAS * error)
        lasting = float(values[-self.patience :].mean())
        then = _level(self._train_levels[max(best - 1, 0) : best + 1])
        now = _level(self._train_levels[-2:])
        if then is None or now is None:
            return
        fell = (then - now) / max(abs(then), 1e-12)
        self._margin = max(self._margin, min((lasting - least) / (limit - least), fell / self.fall))
        up = lasting > limit and values[-2:].min() > (1 + self.rise) * lowest
        if up and fell > self.fall and trend_z(values[best:]) > 2:
            self._fired = True
            at = self._evals.steps[best]
            yield self.finding(
                step,
                first_step=at,
                tensors=dict.fromkeys((self._evals.name, self._training.name)),
                value=float(values[-1]),
                threshold=limit,
                message=f"the evaluation loss was lowest at step {at} ({spell(lowest)}) and has risen to "
                f"{spell(values[-1])} while the training loss fell from {spell(then)} to {spell(now)}: the "
                "model is learning its training data by heart",
                suggestion=f"keep the checkpoint of step {at}; stop early, add data or augmentation, dropout "
                "or weight decay, or make the model smaller",
                evidence={"series": [self._training.name, self._evals.name], "unit": "loss", "best_step": at},
            )

    def coverage(self) -> Coverage:
        """See the base class."""
        needed = self.patience + 1
        missing = list(self._training.missing(1))
        if not self._evals.values:
            missing.append("no evaluation loss was recorded (evaluate with the loss module, or hook.log it)")
        elif len(self._evals.values) < needed:
            missing.append(f"{len(self._evals.values)} evaluations; at least {needed} are needed")
        return Coverage(
            decided=not missing,
            steps=len(self._evals.values),
            first_step=self._evals.steps[0] if self._evals.steps else None,
            last_step=self._evals.steps[-1] if self._evals.steps else None,
            tensors=2 - len(missing) if len(missing) < 2 else 0,
            missing=tuple(missing),
            margin=self._margin,
            closest=self._evals.name,
        )


def _level(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else None
