"""SageMaker's rules about processors and GPUs."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import Sample
from stepwatch.rules.sagemaker_profiler.base import ScannedRule, at_least_zero, box, percent, spread

_KEPT = 1_000_000
_WINDOW_US = 60_000_000

Key = tuple[str, str]
"""Node and device."""


class _Gpus:
    """Utilisation and memory of GPUs in percent; the size of a memory is read seldom."""

    def __init__(self) -> None:
        self._totals: dict[Key, float] = {}

    def utilisation(self, sample: Sample) -> Iterator[tuple[Key, float]]:
        for device, value in sample.of("utilization_percent"):
            yield (sample.node, device), value

    def memory(self, sample: Sample) -> Iterator[tuple[Key, float]]:
        for device, total in sample.of("memory_total_bytes"):
            self._totals[sample.node, device] = total
        for device, used in sample.of("memory_used_bytes"):
            size = self._totals.get((sample.node, device))
            if size and device not in ("node", "cgroup"):
                yield (sample.node, device), 100 * used / size


def _no_gpu(rule: ScannedRule, gpus: object) -> str:
    if not rule.sampled:
        return "the machine was not sampled"
    return "" if gpus else "no GPU was sampled"


class BatchSize(ScannedRule):
    """Processor, GPU and GPU memory are all little used: the batch could be larger, or the machine smaller.

    Args:
        cpu_threshold_p95: 95th percentile of the processors' use (percent) below which they are little used.
        gpu_threshold_p95: the same of a GPU's utilisation.
        gpu_memory_threshold_p95: the same of a GPU's memory.
        patience: samples that must be there before anything is said.
        window: samples that are looked at.
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(
        self,
        *,
        cpu_threshold_p95: float = 70,
        gpu_threshold_p95: float = 70,
        gpu_memory_threshold_p95: float = 70,
        patience: int = 1000,
        window: int = 500,
        scan_interval_us: int = _WINDOW_US,
    ) -> None:
        super().__init__(scan_interval_us)
        percent("cpu_threshold_p95", cpu_threshold_p95)
        percent("gpu_threshold_p95", gpu_threshold_p95)
        percent("gpu_memory_threshold_p95", gpu_memory_threshold_p95)
        self.cpu_threshold_p95 = cpu_threshold_p95
        self.gpu_threshold_p95 = gpu_threshold_p95
        self.gpu_memory_threshold_p95 = gpu_memory_threshold_p95
        self.patience = patience
        self.window = window
        self._gpus = _Gpus()
        self._cpu: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self._use: dict[Key, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self._memory: dict[Key, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))

    def take_sample(self, sample: Sample) -> None:
        """See the base class."""
        cpu = sample.get("node", "cpu_percent")
        if cpu is not None:
            self.datapoints += 1
            self._cpu[sample.node].append(cpu)
        for key, value in self._gpus.utilisation(sample):
            self._use[key].append(value)
        for key, value in self._gpus.memory(sample):
            self._memory[key].append(value)

    def scan(self) -> Iterator[Finding]:
        """See the base class."""
        for (node, device), use in self._use.items():
            cpu, memory = self._cpu[node], self._memory[node, device]
            if len(cpu) <= max(self.window, self.patience) or min(len(use), len(memory)) <= self.window:
                continue
            p95 = [_p95(values, self.window) for values in (cpu, use, memory)]
            limits = (self.cpu_threshold_p95, self.gpu_threshold_p95, self.gpu_memory_threshold_p95)
            if any(value >= limit for value, limit in zip(p95, limits, strict=True)):
                continue
            self.violations += 1
            self.triggered += 1
            yield from self.once(
                f"{node} {device}",
                self.found(
                    devices=[device],
                    value=p95[1],
                    threshold=self.gpu_threshold_p95,
                    message=f"95 % of the time the processors are used {p95[0]:.0f} % or less, {device} {p95[1]:.0f} "
                    "% and "
                    f"its memory {p95[2]:.0f} %",
                    suggestion="use larger batches, or a smaller machine",
                ),
            )

    def details(self) -> dict[str, Any]:
        """See the base class."""
        found: dict[str, Any] = {}
        for (node, device), use in self._use.items():
            parts = found.setdefault(node, {"cpu": box(_last(self._cpu[node], self.window))})
            parts[device] = box(_last(use, self.window))
            parts[f"{device}_memory"] = box(_last(self._memory[node, device], self.window))
        return found

    def missing(self) -> str:
        """See the base class."""
        return _no_gpu(self, self._use) or _too_few(self.datapoints, self.patience)


class _Bottleneck(ScannedRule):
    """Snapshots in which a GPU is little used while a metric of the node is high."""

    metric: str

    def __init__(
        self, threshold: float, gpu_threshold: float, limit: float, patience: int, scan_interval_us: int
    ) -> None:
        super().__init__(scan_interval_us)
        percent("threshold", threshold)
        percent("gpu_threshold", gpu_threshold)
        at_least_zero("patience", patience)
        self.threshold = threshold
        self.gpu_threshold = gpu_threshold
        self.patience = patience
        self._limit = limit
        self._low = 0
        self._seen = False

    def take_sample(self, sample: Sample) -> None:
        """See the base class."""
        use = [value for _, value in sample.of("utilization_percent")]
        value = sample.get("node", self.metric)
        if value is None:
            return
        self.datapoints += 1
        self._seen = self._seen or bool(use)
        if use and min(use) < self.gpu_threshold:
            self._low += 1
            self.violations += value > self._limit

    def scan(self) -> Iterator[Finding]:
        """See the base class."""
        share = 100 * self.violations / max(self.datapoints, 1)
        if self.datapoints > self.patience and share > self.threshold:
            self.triggered += 1
            yield from self.once("", self.tell(share))

    def tell(self, share: float) -> Finding:
        """The finding."""
        raise NotImplementedError

    def details(self) -> dict[str, Any]:
        """See the base class."""
        return {"low_gpu_utilization": self._low, "bottlenecks": self.violations}

    def missing(self) -> str:
        """See the base class."""
        return _no_gpu(self, self._seen) or _too_few(self.datapoints, self.patience)

    def margin(self) -> float | None:
        """See the base class."""
        if not self.datapoints or not self.threshold:
            return None
        return 100 * self.violations / self.datapoints / self.threshold


class CPUBottleneck(_Bottleneck):
    """A GPU waits while a core works: any GPU below ``gpu_threshold`` and any core above ``cpu_threshold``.

    Args:
        threshold: percentage of the samples in which that may be so.
        gpu_threshold: utilisation (percent) below which a GPU waits.
        cpu_threshold: use (percent) above which a core works.
        patience: samples that must be there before anything is said.
        scan_interval_us: microseconds between evaluations.
    """

    metric = "cpu_busiest_core_percent"

    def __init__(
        self,
        *,
        threshold: float = 50,
        gpu_threshold: float = 10,
        cpu_threshold: float = 90,
        patience: int = 1000,
        scan_interval_us: int = _WINDOW_US,
    ) -> None:
        percent("cpu_threshold", cpu_threshold)
        super().__init__(threshold, gpu_threshold, cpu_threshold, patience, scan_interval_us)
        self.cpu_threshold = cpu_threshold

    def tell(self, share: float) -> Finding:
        """See the base class."""
        return self.found(
            value=share,
            threshold=self.threshold,
            message=f"in {share:.0f} % of {self.datapoints} samples a GPU was used less than {self.gpu_threshold:g} % "
            "while "
            f"a core was used more than {self.cpu_threshold:g} %",
            suggestion="more data loader workers and prefetching; preprocess off the critical path, beforehand, or on "
            "the GPU",
        )


class IOBottleneck(_Bottleneck):
    """A GPU waits while a core waits for storage.

    Args:
        threshold: percentage of the samples in which that may be so.
        gpu_threshold: utilisation (percent) below which a GPU waits.
        io_threshold: share of its time (percent) above which a core waits for storage.
        patience: samples that must be there before anything is said.
        scan_interval_us: microseconds between evaluations.
    """

    metric = "iowait_worst_core_percent"

    def __init__(
        self,
        *,
        threshold: float = 50,
        gpu_threshold: float = 10,
        io_threshold: float = 50,
        patience: int = 1000,
        scan_interval_us: int = _WINDOW_US,
    ) -> None:
        percent("io_threshold", io_threshold)
        super().__init__(threshold, gpu_threshold, io_threshold, patience, scan_interval_us)
        self.io_threshold = io_threshold

    def tell(self, share: float) -> Finding:
        """See the base class."""
        return self.found(
            value=share,
            threshold=self.threshold,
            message=f"in {share:.0f} % of {self.datapoints} samples a GPU was used less than {self.gpu_threshold:g} % "
            "while "
            f"a core waited for storage more than {self.io_threshold:g} % of its time",
            suggestion="prefetch, read fewer and larger files, keep the data on a local or faster disk",
        )


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
        scan_interval_us: int = _WINDOW_US,
    ) -> None:
        super().__init__(scan_interval_us)
        percent("threshold_p95", threshold_p95)
        percent("threshold_p5", threshold_p5)
        self.threshold_p95 = threshold_p95
        self.threshold_p5 = threshold_p5
        self.window = window
        self.patience = patience
        self._use: dict[Key, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))

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
            low, high = np.percentile(_last(use, self.window), (5, 95))
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
                    suggestion="find the bottleneck (CPUBottleneck, IOBottleneck, Dataloader), let the host wait for "
                    "the "
                    "device less often (item(), prints), use larger batches",
                ),
            )

    def details(self) -> dict[str, Any]:
        """See the base class."""
        return {
            f"{node} {device}": {"gpu_max": max(use), **box(_last(use, self.window))}
            for (node, device), use in self._use.items()
        }

    def missing(self) -> str:
        """See the base class."""
        most = max(map(len, self._use.values()), default=0)
        return _no_gpu(self, self._use) or _too_few(most, self.patience)


class GPUMemoryIncrease(ScannedRule):
    """The memory in use on a GPU grows from one window of samples to the next, which overlaps it almost wholly.

    Args:
        increase: growth of the mean (percentage points) that is too much.
        patience: samples that must be there before anything is said.
        window: samples in a window.
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(
        self, *, increase: float = 5, patience: int = 1000, window: int = 10, scan_interval_us: int = _WINDOW_US
    ) -> None:
        super().__init__(scan_interval_us)
        at_least_zero("increase", increase)
        if window < 3:
            raise ValueError(f"window is {window}; expected 3 or more")
        self.increase = increase
        self.patience = patience
        self.window = window
        self._gpus = _Gpus()
        self._memory: dict[Key, deque[float]] = defaultdict(lambda: deque(maxlen=window + 1))
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
                    suggestion="use a device with more memory or a smaller batch if it is nearly full; else look for "
                    "a leak "
                    "(MemoryLeak finds slow ones)",
                ),
            )

    def missing(self) -> str:
        """See the base class."""
        return _no_gpu(self, self._counts) or _too_few(max(self._counts.values(), default=0), self.patience)


class LoadBalancing(ScannedRule):
    """GPUs do unequal work: the distributions of their utilisation lie apart.

    Args:
        threshold: distance that is too much: the root of the Jensen-Shannon divergence (natural logarithms) between
            histograms of the utilisation; 0 to 0.83.
        patience: samples of a GPU that must be there before anything is said.
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(self, *, threshold: float = 0.5, patience: int = 1000, scan_interval_us: int = _WINDOW_US) -> None:
        super().__init__(scan_interval_us)
        at_least_zero("threshold", threshold)
        self.threshold = threshold
        self.patience = patience
        self._histograms: dict[Key, NDArray[np.int64]] = defaultdict(lambda: np.zeros(50, np.int64))
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
                        message=f"{one[1]} on {one[0]} and {other[1]} on {other[0]} are used unequally: their "
                        "utilisations "
                        f"lie {distance:.2f} apart",
                        suggestion="give every GPU the same work: DistributedDataParallel instead of DataParallel, "
                        "batches of "
                        "equal size, pipeline stages of equal cost",
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
        return _no_gpu(self, self._histograms) or _too_few(most, self.patience)

    def margin(self) -> float | None:
        """See the base class."""
        return self._farthest / self.threshold if self.threshold else None


class OverallSystemUsage(ScannedRule):
    """Collects how much network, processors, GPUs and memory are used; never fires.

    Args:
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(self, *, scan_interval_us: int = _WINDOW_US) -> None:
        super().__init__(scan_interval_us)
        self._gpus = _Gpus()
        self._values: dict[Key, list[float]] = defaultdict(list)

    def take_sample(self, sample: Sample) -> None:
        """See the base class."""
        if not sample.numbers:
            return
        self.datapoints += 1
        node = sample.node
        for name, metric in (("CPU", "cpu_percent"), ("CPU memory", "memory_percent"), ("I/O", "iowait_percent")):
            value = sample.get("node", metric)
            if value is not None:
                self._values[node, name].append(value)
        network = [sample.get("node", f"network_{way}_bytes_per_s") for way in ("receive", "send")]
        traffic = [value for value in network if value is not None]
        if traffic:
            self._values[node, "Network"].append(sum(traffic))
        for name, each in (("GPU", self._gpus.utilisation), ("GPU memory", self._gpus.memory)):
            used = [value for _, value in each(sample)]
            if used:
                self._values[node, name].append(float(np.mean(used)))

    def scan(self) -> Iterator[Finding]:
        """See the base class."""
        return iter(())

    def details(self) -> dict[str, Any]:
        """See the base class."""
        found: dict[str, Any] = {}
        for (node, name), values in self._values.items():
            found.setdefault(node, {})[name] = spread(values)
        return found

    def missing(self) -> str:
        """See the base class."""
        return "" if self.sampled else "the machine was not sampled"


def _too_few(count: int, patience: int) -> str:
    return "" if count > patience else f"{count} samples; more than {patience} are needed"


def _last(values: deque[float], window: int) -> list[float]:
    return [values[index] for index in range(max(len(values) - window, 0), len(values))]


def _p95(values: deque[float], window: int) -> float:
    return float(np.percentile(_last(values, window), 95))


def _distance(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Root of the Jensen-Shannon divergence of two histograms, natural logarithms."""
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = sum(np.where(part > 0, part * np.log(part / middle), 0.0).sum() for part in (p, q)) / 2
    return float(np.sqrt(max(divergence, 0.0)))
