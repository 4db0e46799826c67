"""Notices at every step that gradients are not finite any more, also where nothing is saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from stepwatch.probe.fetch import Fetch
from stepwatch.probe.sheet import StatisticsSheet
from stepwatch.probe.statistics import PendingStatistics, measure
from stepwatch.probe.store.schema import STAT_COLUMNS

_SHARE = 0.0025  # of the step time
_SECONDS_PER_TENSOR, _SECONDS_PER_ENTRY = 1.5e-6, 0.5e-9
_FEWEST, _MOST = 2, 32
_TRIED = 8  # looks after which their number is thought over
_NORMS_SECONDS, _STATISTICS_SECONDS = 50e-6, 250e-6  # what the launches take, on an accelerator


class Watched(NamedTuple):
    """A parameter whose gradient is looked at, and the gradient's name in the trace."""

    name: str
    parameter: torch.nn.Parameter


_NO_ROWS = np.empty((0, len(STAT_COLUMNS)))


class Glance(NamedTuple):
    """Gradients that were looked at, and their statistics, on their way."""

    names: list[str]
    statistics: PendingStatistics


class GradientGuard:
    """Looks at the smallest gradient in each of several parts of the model's depth.

    A NaN or an infinity that backpropagation meets goes on to the gradients of every layer below, the biases and
    the scales of the norms among them, so that a few thousand numbers stand for all. What arises in one gradient
    alone reaches the loss at the next step, which is looked at as well. What is seen is also the history of the
    steps that nobody saved: their statistics are kept for a while, until it is known that nobody needs them.

    On the CPU the answer is that of this step, on an accelerator that of an earlier one, for which nothing waits.

    Args:
        gradients: those that are recorded, in the order of the model.
    """

    def __init__(self, gradients: Sequence[Watched]) -> None:
        self._gradients = [each for each in gradients if each.parameter.requires_grad]
        self._watched: list[Watched] = []
        self._affordable = math.inf  # seconds
        self._sheet = StatisticsSheet()
        self._quickest = math.inf  # seconds, of the last looks
        self._looks = 0
        self._finite_at_last: Fetch | None = None

    def look(self, step_seconds: float) -> Glance | None:
        """A glance at the gradients, before the update; None where one that is known by now is not finite.

        Args:
            step_seconds: how long the step before took: 2 to 32 gradients are looked at, as many as take a part
                in 400 of the shortest step so far.
        """
        if step_seconds * _SHARE < self._affordable:
            self._affordable = step_seconds * _SHARE
            self._watched = _spread(self._gradients, self._affordable)
        began = perf_counter()
        pairs = [(each.name, gradient) for each in self._watched if (gradient := each.parameter.grad) is not None]
        names, gradients = [name for name, _ in pairs], [gradient for _, gradient in pairs]
        if pairs and not gradients[0].is_cpu:
            return self._look_at_device(names, [gradient.detach() for gradient in gradients])
        self._sheet.clear()
        self._sheet.add_all(names, gradients)
        if self._sheet.broken:
            return None
        matrix = self._sheet.matrix().copy()
        self._hold_down(perf_counter() - began)
        return Glance(list(self._sheet.names), PendingStatistics(lambda: matrix))

    def _hold_down(self, seconds: float) -> None:
        """Look at half as many where even the quickest of some looks took longer than it may: memory was cold."""
        self._quickest = min(self._quickest, seconds)
        self._looks += 1
        if self._looks % _TRIED == 0:
            if self._quickest > self._affordable and len(self._watched) > _FEWEST:
                self._watched = self._watched[::2]
            self._quickest = math.inf

    def _look_at_device(self, names: list[str], gradients: list[torch.Tensor]) -> Glance | None:
        if self._finite_at_last is not None and self._finite_at_last.ready():
            finite, self._finite_at_last = bool(self._finite_at_last()), None
            if not finite:
                return None
        if self._finite_at_last is None and self._affordable > _NORMS_SECONDS:
            with torch.no_grad():
                norms = torch._foreach_norm([each for each in gradients if type(each) is torch.Tensor])
                self._finite_at_last = Fetch(torch.stack(norms).isfinite().all()) if norms else None
        if self._affordable > _STATISTICS_SECONDS:
            return Glance(names, measure(gradients))
        return Glance([], PendingStatistics(lambda: _NO_ROWS))


def _spread(gradients: Sequence[Watched], seconds: float) -> list[Watched]:
    """The smallest of each of as many parts of equal length as can be looked at in that time, but two at least."""
    count = min(max(int(seconds / _SECONDS_PER_TENSOR), _FEWEST), _MOST, max(len(gradients) // 2, _FEWEST))
    bounds = sorted({len(gradients) * part // count for part in range(count + 1)})
    parts = [gradients[first:end] for first, end in pairwise(bounds)]
    smallest = sorted((min(part, key=_entries) for part in parts), key=_entries)
    left = seconds
    chosen: list[Watched] = []
    for each in smallest:
        left -= _SECONDS_PER_TENSOR + _entries(each) * _SECONDS_PER_ENTRY
        if left >= 0 or len(chosen) < _FEWEST:
            chosen.append(each)
    return chosen


def _entries(watched: Watched) -> int:
    return watched.parameter.numel()
