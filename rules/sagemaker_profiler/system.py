"""SageMaker's rules about processors and GPUs."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import Sample
from stepwatch.rules.sagemaker_profiler.base import ScannedRule, at_least_zero, box, percent, spread
from stepwatch.rules.sagemaker_profiler.readings import KEPT, WINDOW_US, Gpus, Key, last, no_gpu, too_few


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
        scan_interval_us: int = WINDOW_US,
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
        self._gpus = Gpus()
        self._cpu: dict[str, deque[float]] = defaultdict(partial(deque, maxlen=KEPT))
        self._use: dict[Key, deque[float]] = defaultdict(partial(deque, maxlen=KEPT))
        self._memory: dict[Key, deque[float]] = defaultdict(partial(deque, maxlen=KEPT))

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
                    message=f"95 % of the time the processors are used {p95[0]:.0f} % or less, "
                    f"{device} {p95[1]:.0f} % and its memory {p95[2]:.0f} %",
                    suggestion="use larger batches, or a smaller machine",
                ),
            )

    def details(self) -> dict[str, Any]:
        """See the base class."""
        found: dict[str, Any] = {}
        for (node, device), use in self._use.items():
            parts = found.setdefault(node, {"cpu": box(last(self._cpu[node], self.window))})
            parts[device] = box(last(use, self.window))
            parts[f"{device}_memory"] = box(last(self._memory[node, device], self.window))
        return found

    def missing(self) -> str:
        """See the base class."""
        return no_gpu(self, self._use) or too_few(self.datapoints, self.patience)


class _Bottleneck(ScannedRule):
    """Snapshots in which a GPU is little used while a metric of the node is high.

    Attributes:
        metric: the metric.
        doing: what a core does while its metric is above the limit, with a place for the limit.
        suggestion: what to try.
    """

    metric: str
    doing: str
    suggestion: str

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
            yield from self.once(
                "",
                self.found(
                    value=share,
                    threshold=self.threshold,
                    message=f"in {share:.0f} % of {self.datapoints} samples a GPU was used less than "
                    f"{self.gpu_threshold:g} % while a core {self.doing.format(self._limit)}",
                    suggestion=self.suggestion,
                ),
            )

    def details(self) -> dict[str, Any]:
        """See the base class."""
        return {"low_gpu_utilization": self._low, "bottlenecks": self.violations}

    def missing(self) -> str:
        """See the base class."""
        return no_gpu(self, self._seen) or too_few(self.datapoints, self.patience)

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
    doing = "was used more than {:g} %"
    suggestion = "more data loader workers and prefetching; preprocess off the critical path, beforehand, or on the GPU"

    def __init__(
        self,
        *,
        threshold: float = 50,
        gpu_threshold: float = 10,
        cpu_threshold: float = 90,
        patience: int = 1000,
        scan_interval_us: int = WINDOW_US,
    ) -> None:
        percent("cpu_threshold", cpu_threshold)
        super().__init__(threshold, gpu_threshold, cpu_threshold, patience, scan_interval_us)
        self.cpu_threshold = cpu_threshold


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
    doing = "waited for storage more than {:g} % of its time"
    suggestion = "prefetch, read fewer and larger files, keep the data on a local or faster disk"

    def __init__(
        self,
        *,
        threshold: float = 50,
        gpu_threshold: float = 10,
        io_threshold: float = 50,
        patience: int = 1000,
        scan_interval_us: int = WINDOW_US,
    ) -> None:
        percent("io_threshold", io_threshold)
        super().__init__(threshold, gpu_threshold, io_threshold, patience, scan_interval_us)
        self.io_threshold = io_threshold


class OverallSystemUsage(ScannedRule):
    """Collects how much network, processors, GPUs and memory are used; never fires.

    Args:
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(self, *, scan_interval_us: int = WINDOW_US) -> None:
        super().__init__(scan_interval_us)
        self._gpus = Gpus()
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


def _p95(values: deque[float], window: int) -> float:
    return float(np.percentile(last(values, window), 95))
