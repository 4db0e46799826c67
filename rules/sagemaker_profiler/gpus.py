"""SageMaker's rules about GPUs alone."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import Sample
from stepwatch.rules.sagemaker_profiler.base import ScannedRule, at_least_zero, box, percent
from stepwatch.rules.sagemaker_profiler.readings import KEPT, WINDOW_US, Gpus, Key, last, no_gpu, too_few


class LowGPUUtilization(ScannedRule):
    """A GPU is little used, or its use goes up and down.

    Args:
        threshold_p95: 95th percentile of the utilisation (percent) below which it is little used.
        threshold_p5: 5th percentile below which, the 95th being high, its use fluctuates.
        window: samples that are looked at.
        patience: samples that must be there before anything is said.
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(
        self,
        *,
        threshold_p95: float = 70,
        threshold_p5: float = 10,
        window: int = 500,
        patience: int = 1000,
        scan_interval_us: int = WINDOW_US,
    ) -> None:
        super().__init__(scan_interval_us)
        percent("threshold_p95", threshold_p95)
        percent("threshold_p5", threshold_p5)
        self.threshold_p95 = threshold_p95
        self.threshold_p5 = threshold_p5
        self.window = window
        self.patience = patience
        self._use: dict[Key, deque[float]] = defaultdict(partial(deque, maxlen=KEPT))

    def take_sample(self, sample: Sample) -> None:
        """See the base class."""
        for device, value in sample.of("utilization_percent"):
            self.datapoints += 1
            self._use[sample.node, device].append(value)

    def scan(self) -> Iterator[Finding]:
        """See the base class."""
        for (node, device), use in self._use.items():
            if len(use) <= self.patience:
                continue
            low, high = np.percentile(last(use, self.window), (5, 95))
            if high < self.threshold_p95:
                told, value, limit = f"{device} is little used: {high:.0f} % or less", high, self.threshold_p95
            elif high > self.threshold_p95 and low < self.threshold_p5:
                told, value, limit = (
                    f"the use of {device} goes up and down: {low:.0f} % to {high:.0f} %",
                    low,
                    self.threshold_p5,
                )
            else:
                continue
            self.violations += 1
            self.triggered += 1
            yield from self.once(
                f"{node} {device}",
                self.found(
                    devices=[device],
                    value=value,
                    threshold=limit,
                    message=f"{told} in 95 % of the last {self.window} samples",
                    suggestion="find the bottleneck (CPUBottleneck, IOBottleneck, Dataloader), let the host wait "
                    "for the device less often (item(), prints), use larger batches",
                ),
            )

    def details(self) -> dict[str, Any]:
        """See the base class."""
        return {
            f"{node} {device}": {"gpu_max": max(use), **box(last(use, self.window))}
            for (node, device), use in self._use.items()
        }

    def missing(self) -> str:
        """See the base class."""
        most = max(map(len, self._use.values()), default=0)
        return no_gpu(self, self._use) or too_few(most, self.patience)


class GPUMemoryIncrease(ScannedRule):
    """The memory in use on a GPU grows from one window of samples to the next, which overlaps it almost wholly.

    Args:
        increase: growth of the mean (percentage points) that is too much.
        patience: samples that must be there before anything is said.
        window: samples in a window.
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(
        self, *, increase: float = 5, patience: int = 1000, window: int = 10, scan_interval_us: int = WINDOW_US
    ) -> None:
        super().__init__(scan_interval_us)
        at_least_zero("increase", increase)
        if window < 3:
            raise ValueError(f"window is {window}; expected 3 or more")
        self.increase = increase
        self.patience = patience
        self.window = window
        self._gpus = Gpus()
        self._memory: dict[Key, deque[float]] = defaultdict(partial(deque, maxlen=window + 1))
        self._counts: dict[Key, int] = defaultdict(int)
        self._grown: dict[Key, float] = {}

    def take_sample(self, sample: Sample) -> None:
        """See the base class."""
        for key, value in self._gpus.memory(sample):
            self.datapoints += 1
            self._counts[key] += 1
            recent = self._memory[key]
            recent.append(value)
            if self._counts[key] > max(self.patience, self.window):
                kept = list(recent)
                grown = float(np.mean(kept[1:]) - np.mean(kept[:-2]))
                if grown > self.increase:
                    self.violations += 1
                    self.triggered += 1
                    self._grown.setdefault(key, grown)

    def scan(self) -> Iterator[Finding]:
        """See the base class."""
        for (node, device), grown in self._grown.items():
            yield from self.once(
                f"{node} {device}",
                self.found(
                    devices=[device],
                    value=grown,
                    threshold=self.increase,
                    message=f"the memory in use on {device} grew by {grown:.1f} percentage points within "
                    f"{self.window} samples",
                    suggestion="use a device with more memory or a smaller batch if it is nearly full; else look "
                    "for a leak (MemoryLeak finds slow ones)",
                ),
            )

    def missing(self) -> str:
        """See the base class."""
        return no_gpu(self, self._counts) or too_few(max(self._counts.values(), default=0), self.patience)


class LoadBalancing(ScannedRule):
    """GPUs do unequal work: the distributions of their utilisation lie apart.

    Args:
        threshold: distance that is too much: the root of the Jensen-Shannon divergence (natural logarithms) between
            histograms of the utilisation; 0 to 0.83.
        patience: samples of a GPU that must be there before anything is said.
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(self, *, threshold: float = 0.5, patience: int = 1000, scan_interval_us: int = WINDOW_US) -> None:
        super().__init__(scan_interval_us)
        at_least_zero("threshold", threshold)
        self.threshold = threshold
        self.patience = patience
        self._histograms: dict[Key, NDArray[np.int64]] = defaultdict(_no_readings)
        self._farthest = 0.0

    def take_sample(self, sample: Sample) -> None:
        """See the base class."""
        for device, value in sample.of("utilization_percent"):
            self.datapoints += 1
            self._histograms[sample.node, device][min(int(value // 2), 49)] += 1

    def scan(self) -> Iterator[Finding]:
        """See the base class."""
        for (one, first), (other, second) in combinations(self._histograms.items(), 2):
            if min(first.sum(), second.sum()) <= self.patience:
                continue
            distance = _distance(first, second)
            self._farthest = max(self._farthest, distance)
            if distance > self.threshold:
                self.violations += 1
                self.triggered += 1
                yield from self.once(
                    f"{one} {other}",
                    self.found(
                        devices=[one[1], other[1]],
                        value=distance,
                        threshold=self.threshold,
                        message=f"{one[1]} on {one[0]} and {other[1]} on {other[0]} are used unequally: "
                        f"their utilisations lie {distance:.2f} apart",
                        suggestion="give every GPU the same work: DistributedDataParallel instead of "
                        "DataParallel, batches of equal size, pipeline stages of equal cost",
                    ),
                )

    def details(self) -> dict[str, Any]:
        """See the base class."""
        return {f"{node} {device}": histogram.tolist() for (node, device), histogram in self._histograms.items()}

    def missing(self) -> str:
        """See the base class."""
        if len(self._histograms) == 1:
            return "one GPU only: there is none to compare it with"
        most = max((int(histogram.sum()) for histogram in self._histograms.values()), default=0)
        return no_gpu(self, self._histograms) or too_few(most, self.patience)

    def margin(self) -> float | None:
        """See the base class."""
        return self._farthest / self.threshold if self.threshold else None


def _distance(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Root of the Jensen-Shannon divergence of two histograms, natural logarithms."""
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = sum(np.where(part > 0, part * np.log(part / middle), 0.0).sum() for part in (p, q)) / 2
    return float(np.sqrt(max(divergence, 0.0)))


def _no_readings() -> NDArray[np.int64]:
    return np.zeros(50, np.int64)
