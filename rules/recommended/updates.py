"""Rules about how far the updates move the weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.schema import UPDATE_QUANTITY
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import RisingRate, positive, spell
from stepwatch.rules.step import Step

_NAMED = 12
_LOW_RATE = 0.1  # of the highest
_KEPT = 50  # measured updates


class _MeasuredUpdates(Rule):
    """Fires when what is measured of the updates lies on one side in a row.

    Args:
        limit: the limit.
        updates: measured updates in a row.
        span: optimizer steps that these must span.
    """

    severity = Severity.WARNING
    suggestion: ClassVar[str]
    unit: ClassVar[str]

    def __init__(self, limit: float, updates: int, span: int) -> None:
        positive("updates", updates)
        positive("span", span)
        self.updates = updates
        self.span = span
        self._limit = limit
        self._rate = RisingRate()
        self._highest_rate = 0.0
        self._since: int | None = None
        self._count = 0
        self._values: deque[float] = deque(maxlen=_KEPT)  # the last of those in a row
        self._steps = SeenSteps()
        self._names: tuple[str, ...] = ()
        self._margin = 0.0
        self._said = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        rising = self._rate.observe(step)
        if not step.training or self._said:
            return
        measured = {name: vector for (name, quantity), vector in step.derived.items() if quantity == UPDATE_QUANTITY}
        if not measured:
            return
        self._names = tuple(measured)
        self._steps.append(step.step)
        value = self._measure(np.array(list(measured.values())))
        if value is None or rising or self._at_low_rate(step) or value <= self._limit:
            self._since, self._count = None, 0
            self._values.clear()
            self._margin = max(self._margin, min((value or 0.0) / self._limit, 1.0))
            return
        self._since = step.step if self._since is None else self._since
        self._count += 1
        self._values.append(value)
        self._margin = max(self._margin, min(self._count / self.updates, 1.0))
        if self._count >= self.updates and step.step - self._since >= self.span:
            self._said = True
            middle = float(np.median(self._values))
            yield self.finding(
                step,
                first_step=self._since,
                tensors=self._names[:_NAMED],
                value=middle,
                threshold=self._limit,
                message=self._message(middle, self._count),
                suggestion=self.suggestion,
                evidence={"series": list(self._names[:_NAMED]), "quantity": UPDATE_QUANTITY, "unit": self.unit},
            )

    def _measure(self, vectors: NDArray[np.float64]) -> float | None:
        """What is compared with the limit, from vectors [weights, 4] of one update; None where it says nothing."""
        raise NotImplementedError

    def _message(self, value: float, updates: int) -> str:
        raise NotImplementedError

    def _at_low_rate(self, step: Step) -> bool:
        """Whether a schedule holds the rate far below what it was, or it is zero."""
        rates = [value for name, value in step.scalars.items() if name.startswith("learning_rate")]
        rate = max(rates, default=0.0)
        self._highest_rate = max(self._highest_rate, rate)
        return bool(rates) and rate <= _LOW_RATE * self._highest_rate

    def coverage(self) -> Coverage:
        """See the base class."""
        spanned = self._steps[-1] - self._steps[0] if self._steps else 0
        missing: tuple[str, ...] = ()
        if not self._steps:
            missing = ("no updates were measured: they are at saved steps, of weights that are whole on this rank",)
        elif len(self._steps) < self.updates or spanned < self.span:
            missing = (
                f"{len(self._steps)} measured updates over {spanned} steps; "
                f"at least {self.updates} over {self.span} are needed",
            )
        return Coverage.of(self._steps, tensors=len(self._names), missing=missing, margin=self._margin)


class UpdateTooLarge(_MeasuredUpdates):
    """Every update replaces a large part of the weights: they cannot settle anywhere.

    The hook measures, at some of the saved steps, by how much the update moves a sample of the entries of a few
    weights, whatever the optimizer. The norm of the change over the norm before it is the share of the weights that one
    update replaces; at 0.3 little that they held three updates ago is left. Healthy jobs of all kinds stay far below.
    It fires when the median over the weights was above ``ratio`` in ``updates`` measured updates in a row over at least
    ``span`` steps. While the learning rate rises, or stands at a tenth of its highest or less, nothing is judged.

    Args:
        ratio: norm of the change over norm of the weights.
        updates: measured updates in a row.
        span: optimizer steps that these must span.
    """

    calibrated = (("ratio", "higher"),)
    unit = "share of the weights"
    suggestion = "lower the learning rate by a factor of 10 or more; check weight decay, which is part of the update"

    def __init__(self, *, ratio: float = 0.3, updates: int = 5, span: int = 50) -> None:
        positive("ratio", ratio)
        super().__init__(ratio, updates, span)
        self.ratio = ratio

    def _measure(self, vectors: NDArray[np.float64]) -> float | None:
        change, size = vectors[vectors[:, 1] > 0][:, :2].T
        return float(np.median(change / size)) if len(size) else None

    def _message(self, value: float, updates: int) -> str:
        return (
            f"one update moves the weights by {spell(value)} of their own norm (median of {updates} measured updates "
            "in a row): what they have learned is overwritten within a few steps"
        )


class UpdateTooSmall(_MeasuredUpdates):
    """Updates are lost in rounding: most entries of the weights stay as they are, although they have a gradient.

    A number changes only where what is added is at least half of its last place: about 1/500 of it in bfloat16,
    1/30,000,000 in float32. The hook counts, at some of the saved steps, in a sample of the entries of a few weights
    those whose gradient is not zero, and of these the ones that the update left exactly as they were. It fires when
    that share, median over the weights, was above ``share`` in ``updates`` measured updates in a row over at least
    ``span`` steps. While the learning rate rises, or stands at a tenth of its highest or less, nothing is judged.

    Args:
        share: part of the entries that stays as it is, below 1.
        updates: measured updates in a row.
        span: optimizer steps that these must span.
    """

    calibrated = (("share", "higher"),)
    unit = "share of the entries"
    suggestion = (
        "keep the weights in float32 (autocast instead of weights in bfloat16 or float16), or use an optimizer with "
        "stochastic rounding or compensated sums; where they are in float32, the learning rate is far too low or the "
        "gradients are clipped or scaled to nothing"
    )

    def __init__(self, *, share: float = 0.75, updates: int = 5, span: int = 100) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share is {share}; expected a number in (0, 1)")
        super().__init__(share, updates, span)
        self.share = share

    def _measure(self, vectors: NDArray[np.float64]) -> float | None:
        moved, left = vectors[vectors[:, 2] > 0][:, 2:].T
        return float(np.median(left / moved)) if len(moved) else None

    def _message(self, value: float, updates: int) -> str:
        return (
            f"{100 * value:.0f} % of the entries of the weights that have a gradient are exactly the same after an "
            f"update (median of {updates} measured updates in a row): the updates are lost in rounding"
        )
