"""Notices at every step that gradients are not finite any more, also where nothing is saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stepwatch.probe.compiled import measure_into
from stepwatch.probe.fetch import Fetch
from stepwatch.probe.statistics import PendingStatistics, measure
from stepwatch.probe.store.schema import STAT_COLUMNS

_SHARE = 0.0025  # of the step time
_SECONDS_PER_TENSOR, _SECONDS_PER_ENTRY = 1.5e-6, 0.5e-9
_FEWEST, _MOST = 2, 32
_NORMS_SECONDS, _STATISTICS_SECONDS = 50e-6, 250e-6  # what the launches take, on an accelerator
_BLOCK_ROWS = 256
_ROW_BYTES = 8 * len(STAT_COLUMNS)


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
        self._rows = _Rows()
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
        names: list[str] = []
        gradients: list[torch.Tensor] = []
        for name, parameter in self._watched:
            gradient = parameter.grad
            if gradient is not None:
                names.append(name)
                gradients.append(gradient)
        rows, address = self._rows.take(len(names))
        broken, left = measure_into(address, gradients)
        if broken:
            return None
        if left:
            if any(not gradients[index].is_cpu for index in left):
                return self._look_at_device()
            names = [name for index, name in enumerate(names) if index not in left]
            rows = rows[: len(names)]
        return Glance(names, PendingStatistics(lambda: rows))

    def _look_at_device(self) -> Glance | None:
        names = [each.name for each in self._watched if each.parameter.grad is not None]
        gradients = [each.parameter.grad.detach() for each in self._watched if each.parameter.grad is not None]
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


class _Rows:
    """Memory for rows of statistics, a few at a time."""

    def __init__(self) -> None:
        self._used = _BLOCK_ROWS

    def take(self, count: int) -> tuple[NDArray[np.float64], int]:
        """float64 [count, len(STAT_COLUMNS)] and its address; ``count`` is 256 at most."""
        if self._used + max(count, 1) > _BLOCK_ROWS:
            self._block = np.empty((_BLOCK_ROWS, len(STAT_COLUMNS)))
            self._address = self._block.ctypes.data
            self._used = 0
        first, self._used = self._used, self._used + count
        return self._block[first : self._used], self._address + first * _ROW_BYTES


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
