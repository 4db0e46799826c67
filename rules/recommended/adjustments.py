"""Rules about what is done to gradients before the update: clipping, and the loss scale of mixed precision."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from stepwatch.probe.store.schema import CLIP_LIMIT_SCALAR, CLIP_NORM_SCALAR, CLIP_VALUE_SCALAR, SCALE_SCALAR
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import RisingRate, TrainingLoss, median, positive, spell
from stepwatch.rules.step import Stats, Step

_FIRST = 5  # losses
_OFTEN = 0.95  # of the saved steps


@dataclass
class _Clipped:
    """One call of a clipping function in the script's step: how far the gradients went beyond it, at saved steps."""

    function: str
    limit: float
    ratios: deque[tuple[int, float]] = field(default_factory=deque)


class ClippingAlwaysActive(Rule):
    """Clipping decides how long every update is, and the loss does not come down.

    Compared at saved steps, from the one on at which the learning rate stopped rising: the norm of the gradients before
    ``clip_grad_norm_`` with the norm that it allows; for ``clip_grad_value_`` the mean magnitude of the gradients'
    entries after it with half of the magnitude that it allows, which is passed when most entries are clipped. It fires
    when this was more than ``factor`` times as much (for values: more) at 95 % of the last ``saved_steps`` saved steps
    or more, over at least ``span`` steps, while the loss has lost less than ``gain`` of what it was at first.

    Clipping that is active at most steps is common in healthy jobs, even far beyond the norm with Adam, which does not
    feel a constant factor; a job that learns is therefore left alone.

    Args:
        factor: multiple of the norm that is allowed, above 1.
        gain: relative improvement of the loss from which on the job learns, in (0, 1).
        saved_steps: saved steps that are looked at.
        span: optimizer steps that these must span.
    """

    severity = Severity.WARNING
    calibrated = (("factor", "higher"),)

    def __init__(self, *, factor: float = 10.0, gain: float = 0.1, saved_steps: int = 20, span: int = 200) -> None:
        if not factor > 1:
            raise ValueError(f"factor is {factor}; expected more than 1")
        if not 0 < gain < 1:
            raise ValueError(f"gain is {gain}; expected a number in (0, 1)")
        positive("saved_steps", saved_steps)
        positive("span", span)
        self.factor = factor
        self.gain = gain
        self.saved_steps = saved_steps
        self.span = span
        self._loss = TrainingLoss()
        self._rate = RisingRate()
        self._clipped: dict[str, _Clipped] = {}
        self._steps = SeenSteps()
        self._learns = False
        self._said = False
        self._margin = 0.0
        self._closest = ""

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        self._loss.observe(step)
        if self._rate.observe(step):
            self._clipped.clear()
        if not step.training or self._said:
            return
        found = dict(self._by_norm(step))
        if step.stats is not None:
            found |= self._by_value(step, step.stats)
        if not found:
            return
        self._steps.append(step.step)
        for name, (function, limit, ratio) in found.items():
            clipped = self._clipped.setdefault(name, _Clipped(function, limit))
            clipped.ratios.append((step.step, ratio))
            while len(clipped.ratios) > self.saved_steps and step.step - clipped.ratios[1][0] >= self.span:
                clipped.ratios.popleft()
            yield from self._judge(step, name, clipped)

    def _by_norm(self, step: Step) -> Iterator[tuple[str, tuple[str, float, float]]]:
        for name, norm in step.scalars.items():
            if name.startswith(CLIP_NORM_SCALAR):
                limit = step.scalars.get(CLIP_LIMIT_SCALAR + name.removeprefix(CLIP_NORM_SCALAR), 0.0)
                if limit > 0 and math.isfinite(norm):
                    yield name, ("clip_grad_norm_", limit, norm / limit)

    def _by_value(self, step: Step, stats: Stats) -> Iterator[tuple[str, tuple[str, float, float]]]:
        rows = stats.tensors.rows("gradients")
        for name, limit in step.scalars.items():
            if name.startswith(CLIP_VALUE_SCALAR) and limit > 0 and len(rows):
                mean = float(stats.l1[rows].sum() / stats.numel[rows].sum())
                yield name, ("clip_grad_value_", limit, 2 * self.factor * mean / limit)

    def _judge(self, step: Step, name: str, clipped: _Clipped) -> Iterator[Finding]:
        if len(clipped.ratios) < self.saved_steps or step.step - clipped.ratios[0][0] < self.span:
            return
        ratios = np.sort([ratio for _, ratio in clipped.ratios])
        often = float(ratios[int((1 - _OFTEN) * len(ratios))])
        if often / self.factor > self._margin:
            self._margin, self._closest = often / self.factor, f"{clipped.function} at step {step.step}"
        if often <= self.factor or self._has_learned():
            return
        self._said = True
        middle = median(ratios)
        if clipped.function == "clip_grad_norm_":
            far = (
                f"{clipped.function}({spell(clipped.limit)}) shortens the gradient to {spell(1 / middle)} of its length"
            )
        else:
            far = f"{clipped.function}({spell(clipped.limit)}) clips most entries of the gradients"
        yield self.finding(
            step,
            first_step=clipped.ratios[0][0],
            tensors=[],
            value=middle,
            threshold=self.factor,
            message=f"{far} (median of {len(ratios)} saved steps): the clipping, not the gradient, sets the length of "
            "the updates, and the loss hardly comes down",
            suggestion="call scaler.unscale_(optimizer) before clipping where a GradScaler is used; allow a norm a "
            "little above the usual one (it is recorded as grad_clip/norm), or raise the learning rate with it",
            evidence={"series": [name], "unit": "gradient norm"},
        )

    def _has_learned(self) -> bool:
        values = self._loss.values
        if len(values) < 2 * _FIRST or self._loss.several or self._loss.signed:
            return True  # nobody knows; quiet is better
        start, now = float(np.median(values[:_FIRST])), float(np.median(values[-len(values) // 10 :]))
        return not start - now < self.gain * abs(start)

    def coverage(self) -> Coverage:
        """See the base class."""
        spanned = self._steps[-1] - self._steps[0] if self._steps else 0
        missing: tuple[str, ...] = ()
        if not self._steps:
            missing = ("no clipping of gradients was recorded",)
        elif len(self._steps) < self.saved_steps or spanned < self.span:
            missing = (
                f"{len(self._steps)} saved steps over {spanned} steps; "
                f"at least {self.saved_steps} over {self.span} are needed",
            )
        return Coverage.of(self._steps, tensors=0, missing=missing, margin=self._margin, closest=self._closest)


class LossScaleCollapse(Rule):
    """The scale of a GradScaler has fallen below one and stays there: it shrinks gradients instead of saving them.

    A scaler halves its scale when gradients overflow, and doubles it again after 2,000 steps without; a healthy job
    settles in the thousands. Below ``scale`` = 1 gradients overflow without any scaling, and those of most parameters
    are lost to underflow. Looked at at saved steps.

    Args:
        scale: the lowest sound scale.
        patience: saved steps in a row.
    """

    severity = Severity.WARNING
    calibrated = (("scale", "lower"),)

    def __init__(self, *, scale: float = 1.0, patience: int = 5) -> None:
        positive("scale", scale)
        positive("patience", patience)
        self.scale = scale
        self.patience = patience
        self._steps = SeenSteps()
        self._below: list[int] = []
        self._highest = 0.0
        self._lowest = math.inf
        self._said = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        scale = step.scalars.get(SCALE_SCALAR)
        if scale is None or not step.training:
            return
        self._steps.append(step.step)
        self._highest = max(self._highest, scale)
        self._lowest = min(self._lowest, scale)
        if scale >= self.scale:
            self._below.clear()
            return
        self._below.append(step.step)
        if len(self._below) == self.patience and not self._said:
            self._said = True
            yield self.finding(
                step,
                first_step=self._below[0],
                tensors=[],
                value=scale,
                threshold=self.scale,
                message=f"the gradient scaler's scale has fallen to {spell(scale)} (it was {spell(self._highest)}): "
                "gradients overflow even without scaling, and small ones are lost",
                suggestion="train in bfloat16, which needs no scaler; or find the layer whose gradients overflow (a "
                "sum where a mean belongs, a logarithm or division near zero) and compute it in float32",
                evidence={"series": [SCALE_SCALAR], "unit": "scale"},
            )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._steps:
            missing = ("no scale of a GradScaler was recorded",)
        elif len(self._steps) < self.patience:
            missing = (f"{len(self._steps)} saved steps; at least {self.patience} are needed",)
        return Coverage.of(
            self._steps,
            tensors=0,
            missing=missing,
            margin=self.scale / self._lowest if 0 < self._lowest < math.inf else None,
            closest=SCALE_SCALAR,
        )
