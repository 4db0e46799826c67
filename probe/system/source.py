"""What a source of samples is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

Reading = tuple[str, str, float]
"""(device, metric, value); the unit is in the metric's name."""


class Source(ABC):
    """Something of the machine that is read again and again, in one thread.

    Attributes:
        period: seconds between readings; 0 where it is read at every sample.
    """

    period: float = 0.0

    @abstractmethod
    def read(self, now: float) -> Iterator[Reading]:
        """What is known at ``now`` (seconds of the monotonic clock); OSError and RuntimeError cost one reading."""


class Rates:
    """Growth of ever-growing counters per second, from one reading to the next."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}

    def of(self, counter: str, total: float, now: float) -> float | None:
        """Growth per second since the last time; None at the first, and where it was set back."""
        before = self._last.get(counter)
        self._last[counter] = (now, total)
        if before is None or now <= before[0] or total < before[1]:
            return None
        return (total - before[1]) / (now - before[0])
