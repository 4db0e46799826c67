"""Who uses the processors: the job, or others that keep it from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.profiler.base import Layout, ProfilerRule, Sample, Thinned, positive
from stepwatch.rules.profiler.memory import Window

_FULL = 0.9
_MOST = 0.99
_MANY = 0.25

Mark = tuple[float, float, float, float]
"""What had been added up at some time: samples, and of them the shares in use, in use by the job, and of waiting."""


@dataclass(frozen=True)
class Use:
    """How the processors were used over some time.

    Attributes:
        busy: share in use, 0 to 1.
        others: share that processes beside the job's used.
        waited: share of the time that a process of the job was ready to run and had none.
    """

    busy: float
    others: float
    waited: float

    @property
    def own(self) -> bool:
        """Whether next to nothing was left, and it was the job that used it."""
        return self.busy >= _FULL and self.others < _MANY

    @property
    def lost(self) -> float:
        """Share of its time that the job lost because others had the processors, below 1."""
        return min(self.waited, _MOST) if self.busy >= _FULL and self.others >= _MANY else 0.0


class Processors:
    """Adds up how the processors are used, to be asked about any time between two samples."""

    def __init__(self) -> None:
        self._cores = 0
        self._total: Mark = (0.0, 0.0, 0.0, 0.0)

    def see_layout(self, layout: Layout) -> None:
        """Count the processors, where a sample has them."""
        cores = sum(device.startswith("core:") for device, _ in layout.devices("cpu_percent"))
        self._cores = max(self._cores, cores)

    def see(self, sample: Sample) -> None:
        """Add a sample."""
        node, job = sample.get("node", "cpu_percent"), sample.get("job", "cpu_percent")
        if node is None or job is None or not self._cores:
            return
        shares = (100.0, node, min(job / self._cores, node), sample.get("job", "cpu_wait_percent") or 0.0)
        count, busy, own, waited = (total + share / 100 for total, share in zip(self._total, shares, strict=True))
        self._total = (count, busy, own, waited)

    def mark(self) -> Mark:
        """Now, for :meth:`since`."""
        return self._total

    def since(self, mark: Mark) -> Use | None:
        """The mean use since then; None where there was no sample."""
        count, busy, own, waited = (now - then for now, then in zip(self._total, mark, strict=True))
        return Use(busy / count, (busy - own) / count, waited / count) if count else None


class BesideOthers(ProfilerRule):
    """A rule about times, which are longer while other processes have the processors.

    Args:
        seconds: time over which it looks at 30 samples.

    Attributes:
        processors: how they are used.
    """

    metrics = frozenset({"cpu_percent"})

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.moments = Thinned(seconds)
        self.processors = Processors()

    def takes(self, layout: Layout) -> bool:
        """See the base class."""
        self.processors.see_layout(layout)
        return super().takes(layout)

    def judge_sample(self, sample: Sample) -> None:
        """See the base class."""
        if self.due(sample):
            self.processors.see(sample)


class CpuContention(ProfilerRule):
    """The thread that trains is ready to go on and gets no processor: others take them, or the job starts too much.

    The kernel counts the time that a thread waits to be run. Whose the processors are then is told by what the job's
    processes use of them together, and what is in use altogether.

    Args:
        percent: share of the time without a processor that is too much.
        seconds: how long it must last.
    """

    severity = Severity.INFO
    metrics = frozenset({"cpu_wait_percent"})
    calibrated = (("percent", "higher"),)

    def __init__(self, *, percent: float = 50.0, seconds: float = 120.0) -> None:
        super().__init__()
        self.percent = positive("percent", percent)
        self.seconds = positive("seconds", seconds)
        self.moments = Thinned(seconds)
        self._waits: dict[str, Window] = {}
        self._processors: dict[str, Processors] = {}
        self._began: dict[str, Mark] = {}
        self._layouts: list[Layout] = []
        self._said: set[str] = set()
        self._judged = False
        self._highest = 0.0

    def takes(self, layout: Layout) -> bool:
        """See the base class."""
        self._layouts.append(layout)
        for processors in self._processors.values():
            processors.see_layout(layout)
        return super().takes(layout)

    def judge_sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        waited = sample.get("process", "cpu_wait_percent")
        if waited is None or not self.due(sample) or sample.node in self._said:
            return
        node = sample.node
        processors = self._processors.get(node)
        if processors is None:
            processors = self._processors[node] = Processors()
            for layout in self._layouts:
                processors.see_layout(layout)
        processors.see(sample)
        mean = self._waits.setdefault(node, Window(self.seconds)).add(sample.seconds, waited)
        if mean is None:
            return
        self._judged = True
        self._highest = max(self._highest, mean / self.percent)
        if mean < self.percent:
            self._began[node] = processors.mark()
            return
        self._said.add(node)
        yield self._finding(node, mean, processors.since(self._began.get(node, (0.0, 0.0, 0.0, 0.0))))

    def _finding(self, node: str, mean: float, use: Use | None) -> Finding:
        told, advice = "", "see what runs on the node (top, htop) beside the job"
        if use is not None and use.others >= _MANY:
            told = f": processes beside the job use {100 * use.others:.0f} % of all processors"
            advice = "end or move what runs beside the job on the node, or reserve processors for it"
        elif use is not None:
            told = f": the job itself uses {100 * (use.busy - use.others):.0f} % of all processors"
            advice = "fewer data loader workers, and fewer threads in each: torch.set_num_threads(), OMP_NUM_THREADS"
        return self.found(
            devices=["process"],
            value=mean,
            threshold=self.percent,
            message=f"the thread that trains on {node} was ready to go on and had no processor {mean:.0f} % of the "
            f"last {self.seconds:g} s{told}",
            suggestion=advice,
            evidence={"node": node, **({"busy": use.busy, "others": use.others} if use else {})},
        )

    def missing(self) -> str:
        """See the base class."""
        if not self._waits:
            return "how long threads wait for a processor was not sampled"
        return "" if self._judged else f"less than {self.seconds:g} s of samples"

    def margin(self) -> float | None:
        """See the base class."""
        return self._highest if self._judged else None
