"""A rule about the size of a batch, from the noise of its gradient."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np

from stepwatch.probe.store.schema import AGREEMENT_QUANTITY, BATCH_QUANTITY
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import TrainingLoss, block_medians, positive, spell, trend_z
from stepwatch.rules.step import Step

_SIGMAS = 3.0


class GradientNoiseScale(Rule):
    """The batch is far larger than the noise of the gradient asks for, or far smaller while the loss still falls.

    The simple noise scale (McCandlish et al. 2018) is the batch size B at which noise and signal of the gradient are
    as large as each other: tr(S) / |G|^2, with G the true gradient and S the covariance of that of one sample.
    Gradients of two batches of B samples at the same weights then have a cosine of 1 / (1 + scale / B). The hook
    measures that cosine for batches in a row, on a sample of some weights; their mean over the last ``pairs`` gives
    scale / B. Below 1 / ``large`` most samples of a batch tell what the others told. Above ``small`` nearly all of an
    update is noise: a larger batch, or one accumulated, bears a higher rate; said only while the loss falls
    (Mann-Kendall, z < -2), since at a minimum there is nothing but noise. Both are held against three standard errors.
    Batches that hold the same data each time are not judged, nor jobs of several losses.

    Args:
        large: how many times as large as the noise scale a batch must be, above 1.
        small: how many times as small, above 1.
        pairs: pairs of batches, at least 10.
        span: steps between the first of them and the last; in the first steps of a job all batches agree.
    """

    severity = Severity.INFO
    calibrated = (("large", "higher"), ("small", "higher"))

    def __init__(self, *, large: float = 20.0, small: float = 50.0, pairs: int = 40, span: int = 500) -> None:
        for name, value in {"large": large, "small": small}.items():
            if not value > 1:
                raise ValueError(f"{name} is {value}; expected more than 1")
        if pairs < 10:
            raise ValueError(f"pairs is {pairs}; expected 10 or more")
        positive("span", span)
        self.large = large
        self.small = small
        self.pairs = pairs
        self.span = span
        self._loss = TrainingLoss()
        self._since: deque[int] = deque(maxlen=pairs)  # steps with a loss before each pair
        self._cosines: deque[float] = deque(maxlen=pairs)
        self._batch: float | None = None
        self._same_data = False
        self._name = ""
        self._steps = SeenSteps(pairs)
        self._ratio: float | None = None
        self._margin = 0.0
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training or self._fired:
            return
        self._loss.observe(step)
        for (name, quantity), vector in step.derived.items():
            if quantity == BATCH_QUANTITY:
                self._same_data = vector[0] == self._batch or vector[2] == 1
                self._batch = float(vector[0])
            elif quantity == AGREEMENT_QUANTITY and np.isfinite(vector[0]):
                self._name = name
                self._steps.append(step.step)
                self._since.append(self._loss.count)
                self._cosines.append(float(vector[0]))
                if self._spans() and not (self._same_data or self._loss.several):
                    yield from self._judge(step)

    def _judge(self, step: Step) -> Iterator[Finding]:
        cosine = float(np.mean(self._cosines))
        error = _SIGMAS * float(np.std(self._cosines, ddof=1)) / math.sqrt(self.pairs)
        self._ratio = (1 - cosine) / cosine if cosine > 0 else math.inf
        least, most = 1 / (1 + self.small), 1 - 1 / (1 + self.large)
        low, high = cosine - error, cosine + error
        self._margin = max(self._margin, min((1 - most) / max(1 - low, 1e-12), 1.0))
        if low > most:
            yield self._say(
                step,
                1 / max(self._ratio, 1e-12),
                self.large,
                f"gradients of batches in a row agree to {100 * cosine:.1f} %: the batch is about "
                f"{spell(1 / max(self._ratio, 1e-12))} times as large as the noise of the gradient asks for",
                "a smaller batch learns as much with each update and costs less; or raise the learning rate with it",
            )
        elif -least < cosine and high < least and self._falls():  # below, each undoes the one before: no noise
            bound = (1 - high) / max(high, 1e-12)
            yield self._say(
                step,
                bound,
                self.small,
                f"gradients of batches in a row hardly agree (cosine {cosine:.4f}): the noise of the gradient asks for "
                f"a batch at least {spell(bound)} times as large",
                "a larger batch, or accumulation over several, bears a higher learning rate and needs fewer updates; "
                "at the present rate it changes little, since a low rate averages the noise as well",
            )

    def _spans(self) -> bool:
        return len(self._cosines) == self.pairs and self._steps[-1] - self._steps[-self.pairs] >= self.span

    def _falls(self) -> bool:
        values = self._loss.values[self._since[0] :]
        known = len(values) >= 20 and not self._loss.signed and np.isfinite(values).all()
        return bool(known) and trend_z(block_medians(values, 20)) < -2

    def _say(self, step: Step, value: float, threshold: float, message: str, suggestion: str) -> Finding:
        self._fired = True
        return self.finding(
            step,
            first_step=self._steps[-self.pairs],
            tensors=[self._name],
            value=value,
            threshold=threshold,
            message=f"{message} (mean of {self.pairs} pairs)",
            suggestion=suggestion,
            evidence={"series": [self._name], "quantity": AGREEMENT_QUANTITY, "unit": "cosine"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._steps:
            missing = ("no gradients of batches in a row were compared: they are at every fourth saved step",)
        elif self._same_data:
            missing = ("batches that differ: each holds the same data",)
        elif self._loss.several:
            missing = self._loss.missing(1)
        elif not self._spans():
            missing = (
                f"{len(self._steps)} pairs of batches in a row; {self.pairs} over {self.span} steps or more are needed",
            )
        said = "" if self._ratio is None else f"noise scale {spell(self._ratio)} times the batch"
        return Coverage.of(
            self._steps, tensors=1 if self._name else 0, missing=missing, margin=self._margin, closest=said
        )
