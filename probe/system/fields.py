"""Fields of accelerators, each read on its own."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stepwatch.probe.system.source import Rates, Reading, Source

log = logging.getLogger("stepwatch")

Field = tuple[str, Callable[[], float]]
"""A metric, and what reads it."""


class DeviceFields(Source):
    """Fields of devices: one that a device lacks costs only itself, and only once.

    Args:
        fields: (device, metric, what reads it).

    Attributes:
        failure: what a field that cannot be read raises.
    """

    failure: type[Exception] | tuple[type[Exception], ...]

    def __init__(self, fields: Sequence[tuple[str, str, Callable[[], float]]]) -> None:
        self._fields = list(fields)
        self._rates = Rates()

    @abstractmethod
    def of_device(self, handle: Any) -> Iterator[Field]:
        """Metrics of a device and how each is read."""

    @abstractmethod
    def lacks(self, error: Exception) -> bool:
        """Whether the error says that the device has no such field, and never will."""

    def read(self, now: float) -> Iterator[Reading]:
        """See the base class. A metric named ``..._total`` is given as its growth per second."""
        for field in list(self._fields):
            device, metric, get = field
            try:
                value = float(get())
            except self.failure as error:
                if self.lacks(error):
                    self._fields.remove(field)
                log.debug("%s of %s cannot be read: %s", metric, device, error)
                continue
            if metric.endswith("_total"):
                rate = self._rates.of(f"{device} {metric}", value, now)
                if rate is not None:
                    yield device, f"{metric.removesuffix('_total')}_per_s", round(rate)
            else:
                yield device, metric, value
