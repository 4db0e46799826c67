"""Tensors that are zero, that do not change, that change too much or too little."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.rules.finding import Finding
from stepwatch.rules.sagemaker.base import SageMakerRule, above, and_others, at_least, percent, worst_first
from stepwatch.rules.sagemaker.selection import Chosen, Selection
from stepwatch.rules.step import Step


class _SelectiveRule(SageMakerRule):
    """A rule that has to be told which tensors to look at."""

    def __init__(self, collection_names: tuple[str, ...] | None, tensor_regex: tuple[str, ...] | None) -> None:
        super().__init__()
        if not collection_names and not tensor_regex:
            self.lacks("neither collection_names nor tensor_regex was given; it looks at what one of them names")
        self._selection = Selection(collection_names, tensor_regex)
        self.nothing = f"no tensor of {self._selection} was recorded"


class AllZero(_SelectiveRule):
    """A tensor is zero, all of it or a given share.

    At each saved step on its own: fires where at least ``threshold`` per cent of the entries of a tensor are
    exactly zero. Empty tensors are passed over. Biases that begin at zero fire at the first step.

    Args:
        collection_names: collections to look at; this or ``tensor_regex`` has to be given.
        tensor_regex: regular expressions over names of tensors to look at.
        threshold: percentage of zeros.
    """

    def __init__(
        self,
        *,
        collection_names: tuple[str, ...] | None = None,
        tensor_regex: tuple[str, ...] | None = None,
        threshold: float = 100.0,
    ) -> None:
        super().__init__(collection_names, tensor_regex)
        percent("threshold", threshold)
        self.threshold = threshold

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        tensors = self._selection.of(step)
        known = (tensors.numel > 0) & np.isfinite(tensors.n_zero)
        if not known.any():
            return None
        self.looked_at(step, int(known.sum()))
        shares = np.where(known, 100 * tensors.n_zero / np.maximum(tensors.numel, 1), -1.0)
        worst = int(shares.argmax())
        if self.threshold:
            self.came_near(shares[worst] / self.threshold, tensors.names[worst])
        hit = np.flatnonzero(shares >= self.threshold)
        if not len(hit):
            return None
        rows = list(worst_first(hit, shares))
        names = [tensors.names[row] for row in rows]
        return self.fire(
            step,
            names,
            shares[rows],
            threshold=self.threshold,
            message=f"{shares[rows[0]]:.3g} % of {names[0]} are zero at step {step.step}"
            f"{and_others(names, len(tensors))}",
            suggestion="look for a broken input, a dead layer, a mask, or a tensor that nothing uses",
            unit="% zeros",
            column="n_zero",
        )


class TensorVariance(_SelectiveRule):
    """The variance of a tensor is too high or too low.

    At each saved step on its own: fires where the population variance of a tensor is above ``max_threshold`` or
    below ``min_threshold``. A bound that is None is not looked at; where both are, nothing ever fires. A tensor
    that holds a NaN or an infinity is passed over.

    Args:
        collection_names: collections to look at; this or ``tensor_regex`` has to be given.
        tensor_regex: regular expressions over names of tensors to look at.
        max_threshold: largest variance.
        min_threshold: smallest variance.
    """

    def __init__(
        self,
        *,
        collection_names: tuple[str, ...] | None = None,
        tensor_regex: tuple[str, ...] | None = None,
        max_threshold: float | None = None,
        min_threshold: float | None = None,
    ) -> None:
        super().__init__(collection_names, tensor_regex)
        if max_threshold is None and min_threshold is None:
            self.lacks("neither max_threshold nor min_threshold was given, so nothing can fire")
        self.max_threshold = max_threshold
        self.min_threshold = min_threshold

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        tensors = self._selection.of(step)
        rows = np.flatnonzero(tensors.finite & np.isfinite(tensors.std))
        if not len(rows) or (self.max_threshold is None and self.min_threshold is None):
            return None
        self.looked_at(step, len(rows))
        variances = np.square(tensors.std)
        return self._judge_bound(step, tensors, rows, variances, high=True) or self._judge_bound(
            step, tensors, rows, variances, high=False
        )

    def _judge_bound(
        self, step: Step, tensors: Chosen, rows: NDArray[np.intp], variances: NDArray[np.float64], *, high: bool
    ) -> Finding | None:
        bound = self.max_threshold if high else self.min_threshold
        if bound is None:
            return None
        badness = variances if high else -variances
        worst = int(rows[badness[rows].argmax()])
        over, under = (variances[worst], bound) if high else (bound, variances[worst])
        self.came_near(over / under if under > 0 else math.inf, tensors.names[worst])
        hit = rows[variances[rows] > bound] if high else rows[variances[rows] < bound]
        if not len(hit):
            return None
        chosen = list(worst_first(hit, badness))
        names = [tensors.names[row] for row in chosen]
        return self.fire(
            step,
            names,
            variances[chosen],
            threshold=bound,
            message=f"the variance of {names[0]} is {variances[chosen[0]]:.3g} at step {step.step}, "
            f"{'above' if high else 'below'} {bound:g}{and_others(names, len(rows))}",
            suggestion="saturation is ahead: initialise smaller, normalise inputs and layers"
            if high
            else "look for symmetric weights, a collapsed representation, or a constant input",
            unit="variance",
            column="std",
        )


class UnchangedTensor(_SelectiveRule):
    """A tensor is the same at several saved steps.

    Fires where the values of a tensor at its last ``num_steps`` saved steps, this one included, are all close,
    |a - b| <= atol + rtol * |b|, each to the one before. The steps at which it was saved need not follow on each
    other; with fewer of them there is no verdict. Of a tensor that was recorded as statistics and not whole,
    "close" is: all statistics are exactly the same, which is stricter.

    Args:
        collection_names: collections to look at; this or ``tensor_regex`` has to be given.
        tensor_regex: regular expressions over names of tensors to look at.
        num_steps: saved steps of the tensor that are compared.
        rtol: relative tolerance.
        atol: absolute tolerance.
        equal_nan: count a NaN as equal to a NaN.
    """

    whole_tensors = True

    def __init__(
        self,
        *,
        collection_names: tuple[str, ...] | None = None,
        tensor_regex: tuple[str, ...] | None = None,
        num_steps: int = 3,
        rtol: float = 1e-05,
        atol: float = 1e-08,
        equal_nan: bool = False,
    ) -> None:
        super().__init__(collection_names, tensor_regex)
        at_least("num_steps", num_steps, 2)
        at_least("rtol", rtol, 0)
        at_least("atol", atol, 0)
        self.num_steps = num_steps
        self.rtol = rtol
        self.atol = atol
        self.equal_nan = equal_nan
        self._places: dict[str, int] = {}
        self._rows: dict[tuple[str, ...], NDArray[np.intp]] = {}
        self._before = np.empty((0, len(STAT_COLUMNS)))
        self._values: dict[str, NDArray[Any]] = {}
        self._since = np.empty(0, dtype=np.int64)
        self._count = np.empty(0, dtype=np.int64)

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        tensors = self._selection.of(step)
        if not len(tensors):
            return None
        rows = self._rows_of(tensors.names)
        before, now = self._before[rows], tensors.matrix
        equal = (before == now) | (np.isnan(before) & np.isnan(now))
        same = equal.all(axis=1) & (self.equal_nan | (tensors.n_nan == 0))
        self._compare_whole(tensors.names, self._selection.values(step), same)
        same &= self._count[rows] > 0
        self._before[rows] = now
        self._since[rows] = np.where(same, self._since[rows], step.step)
        self._count[rows] = np.where(same, self._count[rows] + 1, 1)
        count = self._count[rows]
        longest = int(count.argmax())
        self.came_near(count[longest] / self.num_steps, tensors.names[longest])
        self.looked_at(step, len(tensors))
        hit = np.flatnonzero(count >= self.num_steps)
        if not len(hit):
            return None
        names = [tensors.names[row] for row in hit]
        first = int(self._since[rows[hit[0]]])
        return self.fire(
            step,
            names,
            [count[hit[0]]],
            threshold=self.num_steps,
            first_step=first,
            message=f"{names[0]} is the same at {self.num_steps} saved steps, from step {first} to {step.step}"
            f"{and_others(names, len(tensors))}",
            suggestion="see whether the optimizer holds it, whether requires_grad is set, and whether its gradient "
            "is zero",
            unit="saved steps",
        )

    def _rows_of(self, names: tuple[str, ...]) -> NDArray[np.intp]:
        """Where the state of these tensors is kept."""
        rows = self._rows.get(names)
        if rows is None:
            rows = np.array([self._places.setdefault(name, len(self._places)) for name in names], dtype=np.intp)
            self._rows[names] = rows
            more = len(self._places) - len(self._count)
            self._before = np.concatenate([self._before, np.zeros((more, len(STAT_COLUMNS)))])
            self._since, self._count = (
                np.append(each, np.zeros(more, np.int64)) for each in (self._since, self._count)
            )
        return rows

    def _compare_whole(self, names: tuple[str, ...], values: dict[str, NDArray[Any]], same: NDArray[np.bool_]) -> None:
        """Decide by entries where the tensor is there whole, at this step and at the one before."""
        for row, name in enumerate(names if values or self._values else ()):
            before, now = self._values.pop(name, None), values.get(name)
            if now is None:
                continue
            self._values[name] = now
            if before is not None:
                same[row] = before.shape == now.shape and np.allclose(
                    now, before, rtol=self.rtol, atol=self.atol, equal_nan=self.equal_nan
                )


class WeightUpdateRatio(SageMakerRule):
    """The weights change too much or too little between saved steps, measured against their size.

    For each tensor of the collection ``weights``, between an earlier saved step p and this one, s:
    mean(|w_s - w_p|) / (mean(|w_p|) + epsilon). Fires where it is above ``large_threshold`` or below
    ``small_threshold``. SageMaker publishes no formula; the mean of entrywise ratios is another reading, which
    explodes where a weight is near zero. Without ``num_steps`` p is the saved step before s, else the earliest
    saved step that is at most ``num_steps`` before it. Training steps are looked at where there are any. A frozen
    weight has ratio 0 and fires.

    Needs whole tensors: statistics do not tell how far entries have moved.

    Args:
        num_steps: how far back, in global steps, the earlier step may lie.
        large_threshold: ratio above which the update is too large.
        small_threshold: ratio below which it is too small.
        epsilon: added to the size of the weights.
    """

    whole_tensors = True
    nothing = "no weights were recorded whole (save_raw_tensor)"

    def __init__(
        self,
        *,
        num_steps: int | None = None,
        large_threshold: float = 10.0,
        small_threshold: float = 1e-8,
        epsilon: float = 1e-9,
    ) -> None:
        super().__init__()
        if num_steps is not None:
            at_least("num_steps", num_steps, 1)
        at_least("small_threshold", small_threshold, 0)
        above("large_threshold", large_threshold, small_threshold)
        at_least("epsilon", epsilon, 0)
        self.num_steps = num_steps
        self.large_threshold = large_threshold
        self.small_threshold = small_threshold
        self.epsilon = epsilon
        self._weights = Selection(("weights",))
        self._kept: dict[str, deque[tuple[int, NDArray[Any]]]] = {}

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        if not step.training:
            return None
        ratios: dict[str, tuple[float, int]] = {}
        for name, now in self._weights.values(step).items():
            kept = self._kept.setdefault(name, deque())
            while kept and self.num_steps is not None and kept[0][0] < step.step - self.num_steps:
                kept.popleft()
            if kept and kept[0][1].shape == now.shape and now.size:
                p, earlier = kept[0]
                before = earlier.astype(np.float64)
                ratios[name] = float(np.abs(now - before).mean() / (np.abs(before).mean() + self.epsilon)), p
            if self.num_steps is None:
                kept.clear()
            kept.append((step.step, now))
        if not ratios:
            return None
        self.looked_at(step, len(ratios))
        return self._judge_ratios(step, ratios, large=True) or self._judge_ratios(step, ratios, large=False)

    def _judge_ratios(self, step: Step, ratios: dict[str, tuple[float, int]], *, large: bool) -> Finding | None:
        threshold = self.large_threshold if large else self.small_threshold
        ordered = sorted(ratios, key=lambda name: -ratios[name][0] if large else ratios[name][0])
        value, p = ratios[ordered[0]]
        over, under = (value, threshold) if large else (threshold, value)
        self.came_near(over / under if under > 0 else math.inf, ordered[0])
        names = [name for name in ordered if (ratios[name][0] > threshold if large else ratios[name][0] < threshold)]
        if not names:
            return None
        return self.fire(
            step,
            names,
            [value],
            threshold=threshold,
            first_step=p,
            message=f"{names[0]} moved by {value:.3g} of its size from step {p} to {step.step}, "
            f"{'above' if large else 'below'} {threshold:g}{and_others(names, len(ratios))}",
            suggestion="lower the learning rate"
            if large
            else "raise the learning rate; see whether the optimizer holds the weight and its gradient is not zero",
            unit="update / weight",
        )
