"""What SageMaker's profiler rules share: windows of time after which they are evaluated, and a report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import ProfilerRule, Sample, end_ns
from stepwatch.rules.step import Step

_INTERNAL = frozenset({"scan_interval_us"})


class ScannedRule(ProfilerRule):
    """Collects as events come, and is evaluated at the end of every window of ``scan_interval_us`` and of the run.

    A rule fires once for each thing that it is about (a device, a node); how often the condition was met is counted
    in the report, as ``RuleTriggered``.

    Attributes:
        datapoints: what it has looked at.
        violations: how often a single datum or window met the condition.
        triggered: how often an evaluation met it.
    """

    metrics = None

    def __init__(self, scan_interval_us: int) -> None:
        super().__init__()
        if scan_interval_us <= 0:
            raise ValueError(f"scan_interval_us is {scan_interval_us}; expected more than 0")
        self.scan_interval_us = scan_interval_us
        self.datapoints = 0
        self.violations = 0
        self.triggered = 0
        self._window_end = 0
        self._said: set[str] = set()

    def judge_step(self, step: Step) -> Iterable[Finding]:
        """See the base class."""
        self.take_step(step)
        return self._scan_if_due(end_ns(step))

    def judge_sample(self, sample: Sample) -> Iterable[Finding]:
        """See the base class."""
        self.take_sample(sample)
        return self._scan_if_due(sample.time_ns)

    def conclude(self) -> Iterable[Finding]:
        """The last window ends with the run."""
        return list(self.scan())

    def take_step(self, step: Step) -> None:
        """Take note of a step."""
        return None

    def take_sample(self, sample: Sample) -> None:
        """Take note of a sample."""
        return None

    @abstractmethod
    def scan(self) -> Iterator[Finding]:
        """Evaluate what was collected."""

    def details(self) -> dict[str, Any]:
        """What the report says beside the counts."""
        return {}

    def report(self) -> dict[str, Any]:
        """The object that SageMaker writes as ``profiler-reports/<Rule>.json``."""
        parameters = {
            name: value
            for name, value in vars(self).items()
            if name in getattr(type(self).__init__, "__kwdefaults__", {}) and name not in _INTERNAL
        }
        return {
            "RuleTriggered": self.triggered,
            "Violations": self.violations,
            "Details": self.details(),
            "Datapoints": self.datapoints,
            "RuleParameters": "\n".join(f"{name}:{value}" for name, value in parameters.items()),
        }

    def once(self, about: str, finding: Finding) -> Iterator[Finding]:
        """The finding, the first time that it is about this."""
        if about not in self._said:
            self._said.add(about)
            yield finding

    def _scan_if_due(self, now_ns: int) -> Iterable[Finding]:
        if not self._window_end:
            self._window_end = now_ns + 1000 * self.scan_interval_us
        if now_ns < self._window_end:
            return ()
        self._window_end += (
            1000 * self.scan_interval_us * (1 + (now_ns - self._window_end) // (1000 * self.scan_interval_us))
        )
        return list(self.scan())


def at_least_zero(name: str, value: float) -> None:
    """Check a parameter.

    Raises:
        ValueError: it is below 0.
    """
    if value < 0:
        raise ValueError(f"{name} is {value}; expected 0 or more")


def percent(name: str, value: float) -> None:
    """Check a parameter.

    Raises:
        ValueError: it is not between 0 and 100.
    """
    if not 0 <= value <= 100:
        raise ValueError(f"{name} is {value}; expected 0 to 100")


def box(values: Sequence[float]) -> dict[str, float]:
    """Quartiles, 95th percentile and whiskers (1.5 times the distance of the quartiles, no further than the data)."""
    if not len(values):
        return {}
    p25, p50, p75, p95 = (float(p) for p in np.percentile(values, (25, 50, 75, 95)))
    reach = 1.5 * (p75 - p25)
    return {
        "p25": p25,
        "p50": p50,
        "p75": p75,
        "p95": p95,
        "lower": max(p25 - reach, float(min(values))),
        "upper": min(p75 + reach, float(max(values))),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Maximum, 99th, 95th and 50th percentile and minimum, two decimals, nothing below 0."""
    if not len(values):
        return {}
    p99, p95, p50 = np.percentile(values, (99, 95, 50))
    found = {"max": max(values), "p99": p99, "p95": p95, "p50": p50, "min": min(values)}
    return {name: round(max(float(value), 0.0), 2) for name, value in found.items()}
