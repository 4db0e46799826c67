"""Sets of times as sorted, disjoint intervals: what is covered, by what, and what is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64]


@dataclass(frozen=True)
class Intervals:
    """Disjoint half-open intervals in ascending order, int64 [n] each, in nanoseconds."""

    starts: Times
    ends: Times

    @staticmethod
    def of(starts: Times, ends: Times) -> Intervals:
        """The union of any intervals; empty ones count for nothing."""
        real = ends > starts
        starts, ends = starts[real], ends[real]
        if not len(starts):
            return Intervals(starts, ends)
        order = np.argsort(starts, kind="stable")
        starts, reach = starts[order], np.maximum.accumulate(ends[order])
        first = np.flatnonzero(np.r_[True, starts[1:] > reach[:-1]])
        return Intervals(starts[first], reach[np.r_[first[1:] - 1, len(starts) - 1]])

    @property
    def total(self) -> int:
        """Nanoseconds covered."""
        return int((self.ends - self.starts).sum())

    def __or__(self, other: Intervals) -> Intervals:
        return Intervals.of(np.r_[self.starts, other.starts], np.r_[self.ends, other.ends])

    def shared(self, other: Intervals) -> int:
        """Nanoseconds that both cover."""
        return self.total + other.total - (self | other).total

    def within(self, starts: Times, ends: Times) -> Times:
        """Nanoseconds covered inside each of these windows: int64, as many as there are windows."""
        return self._before(ends) - self._before(starts)

    def gaps(self) -> Intervals:
        """What lies between the first start and the last end, and is not covered."""
        return Intervals(self.ends[:-1], self.starts[1:])

    def _before(self, times: Times) -> Times:
        if not len(self.starts):
            return np.zeros(len(times), np.int64)
        lengths = np.r_[0, np.cumsum(self.ends - self.starts)]
        place = np.searchsorted(self.starts, times, "right")
        last = np.maximum(place - 1, 0)
        over = np.maximum(self.ends[last] - times, 0)
        return np.where(place > 0, lengths[place] - over, 0)
