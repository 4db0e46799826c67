"""Samples of GPUs as SageMaker's rules see them, and what is missing where there are too few."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from stepwatch.rules.profiler.base import Sample
from stepwatch.rules.sagemaker_profiler.base import ScannedRule

KEPT = 1_000_000
"""Samples of a device that are kept."""

WINDOW_US = 60_000_000
"""Microseconds between two evaluations of a rule."""

Key = tuple[str, str]
"""Node and device."""


class Gpus:
    """Utilisation and memory of GPUs in percent; the size of a memory is read seldom."""

    def __init__(self) -> None:
        self._totals: dict[Key, float] = {}

    def utilisation(self, sample: Sample) -> Iterator[tuple[Key, float]]:
        """Percent of the time in which each GPU worked."""
        for device, value in sample.of("utilization_percent"):
            yield (sample.node, device), value

    def memory(self, sample: Sample) -> Iterator[tuple[Key, float]]:
        """Percent of each GPU's memory that is in use; SageMaker's own files say it themselves."""
        for device, percent in sample.of("memory_used_percent"):
            yield (sample.node, device), percent
        for device, total in sample.of("memory_total_bytes"):
            self._totals[sample.node, device] = total
        for device, used in sample.of("memory_used_bytes"):
            size = self._totals.get((sample.node, device))
            if size and device not in ("node", "cgroup"):
                yield (sample.node, device), 100 * used / size


def no_gpu(rule: ScannedRule, gpus: object) -> str:
    """What is missing where ``gpus``, those that were seen, is empty; "" where nothing is."""
    if not rule.sampled:
        return "the machine was not sampled"
    return "" if gpus else "no GPU was sampled"


def too_few(count: int, patience: int) -> str:
    """What is missing where there are not more than ``patience`` samples; "" where nothing is."""
    return "" if count > patience else f"{count} samples; more than {patience} are needed"


def last(values: deque[float], window: int) -> list[float]:
    """The last ``window`` of the values."""
    return [values[index] for index in range(max(len(values) - window, 0), len(values))]
