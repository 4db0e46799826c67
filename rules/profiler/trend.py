"""Whether something grows steadily, and when it will have reached its limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRETCHES = 24
_LEAST = 8
_STEADY = 0.8


@dataclass(frozen=True)
class Growth:
    """Steady growth over the later half of what was seen.

    Attributes:
        per_second: growth per second (Theil and Sen's median of slopes).
        total: growth over that half.
        seconds: how long that half is.
    """

    per_second: float
    total: float
    seconds: float


class Trend:
    """A series of which only the lowest value of each stretch of time is kept: its floor.

    What rises and falls (caches, garbage before it is collected) has a level floor; what leaks raises it.

    Args:
        seconds: time that must be seen before anything is said. A 24th of it is a stretch; they double in length as
            the series goes on.
    """

    def __init__(self, seconds: float) -> None:
        self._least = seconds
        self._width = seconds / STRETCHES
        self._floors: list[tuple[float, float]] = []
        self._open: tuple[float, float] | None = None
        self._began: float | None = None
        self._latest = 0.0

    @property
    def seconds(self) -> float:
        """Time that was seen."""
        return 0.0 if self._began is None else self._latest - self._began

    def add(self, time: float, value: float) -> Growth | None:
        """Take a value at a time in seconds; returns the growth when a stretch has ended and it is steady."""
        self._began = time if self._began is None else self._began
        self._latest = time
        if self._open is None:
            self._open = (time, value)
        elif time - self._open[0] < self._width:
            self._open = (self._open[0], min(self._open[1], value))
        else:
            self._floors.append(self._open)
            self._open = (time, value)
            if len(self._floors) >= 2 * STRETCHES:
                self._floors = [
                    (a[0], min(a[1], b[1])) for a, b in zip(self._floors[::2], self._floors[1::2], strict=True)
                ]
                self._width *= 2
            return self._growth()
        return None

    def _growth(self) -> Growth | None:
        if self.seconds < self._least or len(self._floors) < _LEAST:
            return None
        late = np.array(self._floors[len(self._floors) // 2 :])
        times, values = late[:, 0], late[:, 1]
        if (np.diff(values) > 0).mean() < _STEADY:
            return None
        slope = _median_slope(times, values)
        if slope <= 0:
            return None
        return Growth(slope, float(values[-1] - values[0]), float(times[-1] - times[0]))


def _median_slope(times: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    first, second = np.triu_indices(len(values), k=1)
    return float(np.median((values[second] - values[first]) / (times[second] - times[first])))
