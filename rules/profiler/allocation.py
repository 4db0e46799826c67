"""Rules about how the memory of devices is used by the job's own allocator, and how much of it is left."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.profiler.base import ProfilerRule, Sample, Thinned, end_ns, positive, spell_bytes
from stepwatch.rules.profiler.gpus import JobGpus
from stepwatch.rules.profiler.memory import Window
from stepwatch.rules.step import Step

_WARM_UP_STEPS = 20


class Fragmentation(ProfilerRule):
    """The allocator of CUDA memory finds no room again and again, and gives back what it had cached to find some.

    At each such retry the device waits, and everything is allocated anew. Where a good part of the memory lies free
    between blocks in use the memory is fragmented: there is room, but not in one piece. Else the job needs nearly all
    that there is. Retries in the first steps, while the allocator learns the sizes that are asked for, do not count.

    Args:
        retries: retries in a window that are too many, at least 1.
        seconds: length of the window.
        share: share of the reserved memory that lies free in between, from which on it is called fragmented.
    """

    def __init__(self, *, retries: int = 5, seconds: float = 300.0, share: float = 0.15) -> None:
        super().__init__()
        self.retries = int(positive("retries", retries))
        self.seconds = positive("seconds", seconds)
        self.share = positive("share", share)
        self._seen: dict[int, int] = {}
        self._counts: dict[int, deque[tuple[float, int, int]]] = {}
        self._recorded = False
        self._highest = 0
        self._said: set[int] = set()

    def judge_step(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        retries = step.timing.get("allocation_retries")
        if not step.training or retries is None:
            return
        self._recorded = True
        seen = self._seen[step.rank] = self._seen.get(step.rank, 0) + 1
        if seen <= _WARM_UP_STEPS:
            return
        now = end_ns(step) / 1e9
        counts = self._counts.setdefault(step.rank, deque())
        if not counts or retries != counts[-1][1]:
            counts.append((now, retries, step.step))
        while len(counts) > 1 and counts[1][0] < now - self.seconds:
            counts.popleft()
        grown = retries - counts[0][1]
        self._highest = max(self._highest, grown)
        if grown < self.retries or step.rank in self._said:
            return
        self._said.add(step.rank)
        reserved = max(step.timing.get("reserved_bytes", 0), 1)
        free = step.timing.get("fragmented_bytes", 0)
        fragmented = free >= self.share * reserved
        told = (
            f"{spell_bytes(free)} of {spell_bytes(reserved)} lie free between blocks in use: the memory is fragmented"
            if fragmented
            else f"nearly all of the {spell_bytes(reserved)} that it holds is in use: the job needs more than there is"
        )
        yield self.found(
            first_step=counts[0][2],
            rank=step.rank,
            value=grown,
            threshold=self.retries,
            message=f"the allocator found no room {grown} times since step {counts[0][2]}, and gave back its cache "
            f"each time while the device waited; {told}",
            suggestion="PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, and batches padded to a few sizes only"
            if fragmented
            else "a smaller batch with gradient accumulation, activation checkpointing, or parameters sharded by FSDP",
            evidence={"reserved_bytes": reserved, "fragmented_bytes": free, "fragmented": fragmented},
        )

    def missing(self) -> str:
        """See the base class."""
        if not self._recorded:
            return "no statistics of an allocator of device memory were recorded"
        needed = _WARM_UP_STEPS + 1
        most = max(self._seen.values(), default=0)
        return "" if most >= needed else f"{most} training steps; at least {needed} are needed"

    def margin(self) -> float | None:
        """See the base class."""
        return self._highest / self.retries if self._recorded else None


class SmallBatch(ProfilerRule):
    """A GPU of the job is not kept busy though data is there in time, and most of its memory is free: larger batches.

    Judged by the mean utilisation over a window, and the most memory that was in use by then. Where the
    steps wait for data, a larger batch would not help, and it does not fire; GPUs that are not the job's do not count.

    Args:
        percent: utilisation below which a GPU is not kept busy.
        memory: share of its memory in use below which most of it is free.
        seconds: how long it must last.
        steps: training steps that must have ended meanwhile.
    """

    severity = Severity.INFO
    metrics = frozenset({"utilization_percent", "memory_total_bytes"})
    seldom = frozenset({"own_memory_bytes"})

    calibrated = (("percent", "lower"), ("memory", "lower"))

    def __init__(self, *, percent: float = 60.0, memory: float = 0.4, seconds: float = 300.0, steps: int = 50) -> None:
        super().__init__()
        self.percent = positive("percent", percent)
        self.memory = positive("memory", memory)
        self.seconds = positive("seconds", seconds)
        self.least = positive("steps", steps)
        self.moments = Thinned(seconds)
        self._gpus = JobGpus()
        self._use: dict[str, Window] = {}
        self._most: dict[str, float] = {}
        self._totals: dict[str, float] = {}
        self._steps: deque[tuple[float, float, float]] = deque()
        self._whole = self._waited = 0.0
        self._judged = False
        self._said = False

    def judge_step(self, step: Step) -> None:
        """See the base class."""
        self._gpus.see_step(step)
        if not step.training:
            return
        now = end_ns(step) / 1e9
        whole = step.timing.get("duration_ns", 0) / 1e9
        waited = (step.timing.get("loader_ns", 0) + step.timing.get("checkpoint_ns", 0)) / 1e9
        self._steps.append((now, whole, waited))
        self._whole += whole
        self._waited += waited
        while self._steps[0][0] < now - self.seconds:
            _, whole, waited = self._steps.popleft()
            self._whole -= whole
            self._waited -= waited

    def judge_sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        self._gpus.see_sample(sample)
        self._totals.update(sample.of("memory_total_bytes"))
        if self._said or not self.due(sample):
            return
        for uuid, used in sample.of("memory_used_bytes"):
            self._most[uuid] = max(self._most.get(uuid, 0.0), used)
        for uuid, use in sample.of("utilization_percent"):
            window = self._use.get(uuid)
            if window is None:
                window = self._use[uuid] = Window(self.seconds)
            mean = window.add(sample.seconds, use)
            if mean is not None:
                yield from self._judge(uuid, mean)

    def _judge(self, uuid: str, mean: float) -> Iterator[Finding]:
        total, most = self._totals.get(uuid), self._most.get(uuid, 0.0)
        if len(self._steps) < self.least or not total or uuid not in self._gpus:
            return
        self._judged = True
        waiting = self._waited / max(self._whole, 1e-9)
        if mean >= self.percent or most >= self.memory * total or waiting >= _WAITING or self._said:
            return
        self._said = True
        yield self.found(
            devices=[uuid],
            value=mean,
            threshold=self.percent,
            message=f"{uuid} is used {mean:.0f} % of {self.seconds:g} s and has never held more than "
            f"{spell_bytes(most)} of its {spell_bytes(total)}; {100 * waiting:.0f} % of the step is waiting for data",
            suggestion=f"a batch up to {max(int(0.9 * total / most), 2)} times as large would fit; scale the learning "
            "rate with it, or use a smaller GPU",
            evidence={"most_bytes": most, "total_bytes": total, "waiting_share": waiting},
        )

    def missing(self) -> str:
        """See the base class."""
        if not self._use:
            return "no GPU was sampled"
        if not self._gpus.ranks:
            return "the job does not train on a GPU"
        return "" if self._judged else f"less than {self.seconds:g} s or {self.least} steps on a GPU of the job"


_WAITING = 0.2
