"""SageMaker's rules about steps and data loaders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import Sample, end_ns, spell_seconds
from stepwatch.rules.sagemaker_profiler.base import ScannedRule, spread
from stepwatch.rules.step import Step

_WINDOW_US = 60_000_000


class StepOutlier(ScannedRule):
    """Some steps take far longer than the others of their mode.

    Args:
        stddev: standard deviations above the mean from which a step is an outlier.
        mode: mode that is looked at, as ``TRAIN`` or ``Step:ModeKeys.TRAIN``; all where it is None.
        n_outliers: outliers that there may be.
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(
        self,
        *,
        stddev: float = 3,
        mode: str | None = None,
        n_outliers: int = 10,
        scan_interval_us: int = _WINDOW_US,
    ) -> None:
        super().__init__(scan_interval_us)
        if stddev <= 0:
            raise ValueError(f"stddev is {stddev}; expected more than 0")
        self.stddev = stddev
        self.mode = None if mode in (None, "", "None") else mode
        self.n_outliers = n_outliers
        self._durations: dict[tuple[int, str], list[tuple[float, int]]] = defaultdict(list)

    def take_step(self, step: Step) -> None:
        """See the base class."""
        duration = step.timing.get("duration_ns")
        wanted = self.mode is None or self.mode.rpartition(".")[2].upper() == step.mode
        if duration and wanted:
            self.datapoints += 1
            self._durations[step.rank, step.mode].append((duration / 1e9, step.step))

    def scan(self) -> Iterator[Finding]:
        """See the base class."""
        for (rank, mode), pairs in self._durations.items():
            durations, steps = (np.array(column) for column in zip(*pairs, strict=True))
            if len(durations) <= 100:
                continue
            limit = float(durations.mean() + self.stddev * durations.std())
            outliers = steps[durations > limit]
            if len(outliers) <= self.n_outliers:
                continue
            self.violations += 1
            self.triggered += 1
            yield from self.once(
                f"{rank} {mode}",
                self.found(
                    rank=rank,
                    first_step=int(outliers[0]),
                    value=len(outliers),
                    threshold=self.n_outliers,
                    message=f"{len(outliers)} of {len(durations)} {mode} steps took longer than "
                    f"{spell_seconds(limit)}, "
                    f"{self.stddev:g} standard deviations above the mean of {spell_seconds(float(durations.mean()))}",
                    suggestion="see what happened in them: checkpoints, evaluations, logging, the first batch of an "
                    "epoch, "
                    "peaks of processors and storage",
                    evidence={"steps": [int(step) for step in outliers[:100]]},
                ),
            )

    def details(self) -> dict[str, Any]:
        """See the base class."""
        return {
            f"rank {rank} {mode}": {
                **spread([duration for duration, _ in pairs]),
                "mean": float(np.mean([duration for duration, _ in pairs])),
                "count": len(pairs),
            }
            for (rank, mode), pairs in self._durations.items()
        }

    def missing(self) -> str:
        """See the base class."""
        most = max(map(len, self._durations.values()), default=0)
        return "" if most > 100 else f"{most} timed steps of a mode; more than 100 are needed"


class MaxInitializationTime(ScannedRule):
    """No step has begun for long after the start.

    Args:
        threshold: minutes that it may take.
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(self, *, threshold: float = 20, scan_interval_us: int = _WINDOW_US) -> None:
        super().__init__(scan_interval_us)
        if threshold < 0:
            raise ValueError(f"threshold is {threshold}; expected 0 or more")
        self.threshold = threshold
        self._start = 0
        self._latest = 0
        self._first: int | None = None
        self._steps: tuple[int, int] | None = None

    def take_step(self, step: Step) -> None:
        """See the base class."""
        begin = step.time_ns
        if self._first is None:
            self._first = begin
        self._start = self._start or begin
        self._latest = end_ns(step)
        self._steps = (begin if self._steps is None else self._steps[0], self._latest)
        self.datapoints += 1

    def take_sample(self, sample: Sample) -> None:
        """See the base class."""
        self._start = self._start or sample.time_ns
        self._latest = sample.time_ns

    def scan(self) -> Iterator[Finding]:
        """See the base class."""
        until = self._latest if self._first is None else self._first
        minutes = (until - self._start) / 60e9
        if minutes > self.threshold:
            self.violations += 1
            self.triggered += 1
            yield from self.once(
                "",
                self.found(
                    value=minutes,
                    threshold=self.threshold,
                    message=f"no step had begun {minutes:.1f} minutes after the start",
                    suggestion="stream the data instead of fetching all of it first, keep it near, do less before "
                    "training",
                ),
            )

    def details(self) -> dict[str, Any]:
        """See the base class."""
        found: dict[str, Any] = {"job_start": self._start / 1e9, "job_end": self._latest / 1e9, "step_num": {}}
        if self._steps is not None:
            found["step_num"] = {"first": self._steps[0] // 1000, "last": self._steps[1] // 1000}
        return found

    def missing(self) -> str:
        """See the base class."""
        return "" if self._start else "neither steps nor samples were recorded"


class Dataloader(ScannedRule):
    """There are far fewer, or far more, data loader workers than cores.

    Args:
        min_threshold: percentage of the cores below which there are too few workers.
        max_threshold: percentage of the cores above which there are too many.
        patience: seconds with a loader at work that must be there before anything is said.
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(
        self,
        *,
        min_threshold: float = 70,
        max_threshold: float = 200,
        patience: int = 10,
        scan_interval_us: int = _WINDOW_US,
    ) -> None:
        super().__init__(scan_interval_us)
        if not 0 <= min_threshold <= max_threshold:
            raise ValueError(f"min_threshold is {min_threshold}; expected 0 up to max_threshold, {max_threshold}")
        self.min_threshold = min_threshold
        self.max_threshold = max_threshold
        self.patience = patience
        self._cores: dict[str, int] = {}
        self._by_second: dict[int, dict[int, int]] = defaultdict(dict)
        self._waits: list[float] = []

    def take_sample(self, sample: Sample) -> None:
        """See the base class."""
        cores = sum(device.startswith("core:") for device, _ in sample.of("cpu_percent"))
        if cores:
            self._cores[sample.node] = cores

    def take_step(self, step: Step) -> None:
        """See the base class."""
        workers = step.timing.get("loader_workers")
        if workers is not None:
            # Without workers the process itself loads.
            self._by_second[end_ns(step) // 1_000_000_000][step.rank] = max(workers, 1)
            self._waits.append(step.timing.get("loader_ns", 0) / 1e9)
            self.datapoints = len(self._by_second)

    def scan(self) -> Iterator[Finding]:
        """See the base class."""
        cores = sum(self._cores.values())
        if not cores or len(self._by_second) <= self.patience:
            return
        workers = float(np.median([sum(ranks.values()) for ranks in self._by_second.values()]))
        share = 100 * workers / cores
        if self.min_threshold <= share <= self.max_threshold:
            return
        self.violations += 1
        self.triggered += 1
        few = share < self.min_threshold
        yield from self.once(
            "",
            self.found(
                value=share,
                threshold=self.min_threshold if few else self.max_threshold,
                message=f"{workers:.0f} processes load data on {cores} cores: {'fewer' if few else 'more'} than "
                f"{self.min_threshold if few else self.max_threshold:g} %",
                suggestion="set num_workers near the number of cores, if the training waits for data "
                "(DataLoadingBound says)",
            ),
        )

    def details(self) -> dict[str, Any]:
        """See the base class."""
        workers = [sum(ranks.values()) for ranks in self._by_second.values()]
        return {
            "cores": sum(self._cores.values()),
            "dataloaders": float(np.median(workers)) if workers else 0,
            "dataloading_time": spread(self._waits),
        }

    def missing(self) -> str:
        """See the base class."""
        if not self._by_second:
            return "no step waited for a DataLoader"
        if not self._cores:
            return "the machine was not sampled"
        few = len(self._by_second) <= self.patience
        return f"{len(self._by_second)} seconds with a loader; more than {self.patience} are needed" if few else ""


class OverallFrameworkMetrics(ScannedRule):
    """Collects where the time of steps goes; never fires.

    Args:
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(self, *, scan_interval_us: int = _WINDOW_US) -> None:
        super().__init__(scan_interval_us)
        self._modes: dict[str, float] = defaultdict(float)
        self._phases: dict[str, float] = defaultdict(float)
        self._span = [0, 0]

    def take_step(self, step: Step) -> None:
        """See the base class."""
        timing = step.timing
        if not timing.get("duration_ns"):
            return
        self.datapoints += 1
        self._span = [self._span[0] or end_ns(step) - timing["duration_ns"], end_ns(step)]
        self._modes[step.mode] += timing["duration_ns"]
        for name in ("loader", "data", "forward", "backward", "optimizer"):
            self._phases[name] += timing.get(f"{name}_ns", 0)

    def scan(self) -> Iterator[Finding]:
        """See the base class."""
        return iter(())

    def details(self) -> dict[str, Any]:
        """See the base class."""
        whole = max(float(self._span[1] - self._span[0]), sum(self._modes.values()), 1.0)
        phase = {mode: 100 * spent / whole for mode, spent in self._modes.items()}
        passes = self._phases["forward"] + self._phases["backward"] or 1.0
        return {
            "phase": {**phase, "others": 100 - sum(phase.values())},
            "forward_backward": {name: 100 * self._phases[name] / passes for name in ("forward", "backward")},
            "general": {
                "DataLoaderIter": 100 * self._phases["loader"] / whole,
                "Forward": 100 * self._phases["forward"] / whole,
                "Backward": 100 * self._phases["backward"] / whole,
                "Optimizer": 100 * self._phases["optimizer"] / whole,
            },
        }

    def missing(self) -> str:
        """See the base class."""
        return "" if self.datapoints else "no timed steps were recorded"
