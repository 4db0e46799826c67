"""Rules about what runs full: memory of the host and of devices, disks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.profiler.base import ProfilerRule, Sample, Thinned, end_ns, positive, spell_bytes, spell_seconds
from stepwatch.rules.profiler.trend import Trend
from stepwatch.rules.step import Step

_MIB = float(1 << 20)
_RANK = "rank "


class _RunsFull(ProfilerRule):
    """Something grows steadily and will reach its limit.

    Args:
        seconds: time that is looked at, at least.
        horizon: how far ahead is looked, in times of what was seen.
        growth_mib: growth that counts at all, over the later half of what was seen.
    """

    def __init__(self, *, seconds: float = 300.0, horizon: float = 20.0, growth_mib: float = 256.0) -> None:
        super().__init__()
        self.seconds = positive("seconds", seconds)
        self.horizon = positive("horizon", horizon)
        self.growth_mib = positive("growth_mib", growth_mib)
        self._trends: dict[tuple[str, str], Trend] = {}
        self._said: set[tuple[str, str]] = set()
        self._nearest = 0.0

    def look(self, node: str, time: float, device: str, used: float, room: float | None) -> Iterator[Finding]:
        """Take a value of ``used`` and, where it is known, of the room that is left, at a time in seconds."""
        key = (node, device)
        trend = self._trends.get(key)
        if trend is None:
            trend = self._trends[key] = Trend(self.seconds)
        growth = trend.add(time, used)
        if growth is None or room is None or growth.total < self.growth_mib * _MIB or key in self._said:
            return
        left = max(room, 0.0) / growth.per_second
        reach = self.horizon * trend.seconds
        self._nearest = max(self._nearest, reach / max(left, 1e-9))
        if left > reach:
            return
        self._said.add(key)
        yield self.found(
            devices=[device],
            value=left,
            threshold=reach,
            message=self.tell(device, growth.per_second, growth.seconds, room, left),
            suggestion=self.advise(device),
            evidence={"node": node, "bytes_per_second": growth.per_second, "seconds_left": left, "room": room},
        )

    def tell(self, device: str, per_second: float, seconds: float, room: float, left: float) -> str:
        """The finding's sentence."""
        raise NotImplementedError

    def advise(self, device: str) -> str:
        """What to try."""
        raise NotImplementedError

    def missing(self) -> str:
        """See the base class."""
        seen = max((trend.seconds for trend in self._trends.values()), default=0.0)
        if not self._trends:
            return "what it looks at was not sampled"
        return "" if seen >= self.seconds else f"{spell_seconds(seen)} of samples; {self.seconds:g} s are needed"

    def margin(self) -> float | None:
        """See the base class."""
        return self._nearest if not self.missing() else None


class MemoryLeak(_RunsFull):
    """Memory of the job's processes, or of a GPU, grows and grows, and will be used up.

    Judged by the floor of the use, so that caches and uncollected garbage, which come and go, do not count; growth
    while a job starts does not either, for it ends. Of GPUs it is judged by what PyTorch's allocator has in tensors
    at the end of steps, and by what the driver says is in use. What the allocator has had at most must fit too: the
    room is what is left beside that.

    Args:
        seconds: time that is looked at, at least.
        horizon: how far ahead is looked, in times of what was seen.
        growth_mib: growth in MiB over the later half of what was seen that counts at all.
    """

    metrics = frozenset({"memory_rss_bytes", "memory_used_bytes", "memory_total_bytes", "memory_limit_bytes"})
    seldom = frozenset({"own_memory_bytes", "memory_limit_bytes"})  # the first comes with the totals of GPUs

    def __init__(self, *, seconds: float = 300.0, horizon: float = 20.0, growth_mib: float = 256.0) -> None:
        super().__init__(seconds=seconds, horizon=horizon, growth_mib=growth_mib)
        self.moments = Thinned(seconds)
        self._limits: dict[tuple[str, str], float] = {}
        self._room: dict[tuple[str, str], float] = {}
        self._told_by_allocator = False

    def judge_step(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        timing = step.timing
        if not step.training or not timing.get("device_bytes"):
            return
        allocated = timing["allocated_bytes"]
        room = timing["device_bytes"] - max(timing["peak_bytes"], allocated)
        for finding in self.look("", end_ns(step) / 1e9, f"{_RANK}{step.rank}", allocated, room):
            self._told_by_allocator = True  # the driver would say the same, later
            yield finding

    def judge_sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        node = sample.node
        for device, total in sample.of("memory_total_bytes"):
            self._limits[node, device] = total
        limit = sample.get("cgroup", "memory_limit_bytes")
        if limit is not None:
            self._limits[node, "cgroup"] = limit
        if not self.due(sample):
            return
        for device, used in sample.of("memory_used_bytes"):
            total_of = self._limits.get((node, device))
            room = None if total_of is None else total_of - used
            if device not in ("node", "cgroup"):
                if self._told_by_allocator:
                    continue
                yield from self.look(node, sample.seconds, device, used, room)
            elif room is not None:
                self._room[node, device] = room
        resident = sample.get("job", "memory_rss_bytes")
        if resident is not None:
            rooms = [self._room[node, device] for device in ("node", "cgroup") if (node, device) in self._room]
            yield from self.look(node, sample.seconds, "job", resident, min(rooms, default=None))

    def tell(self, device: str, per_second: float, seconds: float, room: float, left: float) -> str:
        """See the base class."""
        if device.startswith(_RANK):
            what = f"what {device} holds in tensors on its GPUs"
        else:
            what = "the memory of the job's processes" if device == "job" else f"the memory in use on {device}"
        return (
            f"{what} has grown steadily by {spell_bytes(60 * per_second)} a minute for {spell_seconds(seconds)}; "
            f"the {spell_bytes(room)} that are left will be used up in {spell_seconds(left)}"
        )

    def advise(self, device: str) -> str:
        """See the base class."""
        if device == "job":
            return (
                "look for lists that keep tensors or batches (losses appended without item() or detach()), caches "
                "without a bound, and data sets of many Python objects in forked workers"
            )
        return (
            "look for tensors kept from step to step: losses added up without item() or detach(), outputs in lists, "
            "hidden states that carry their graph along"
        )


class DiskFilling(_RunsFull):
    """A volume that the job writes to is filling, or is full but for a rest.

    Args:
        seconds: time that is looked at, at least.
        horizon: how far ahead is looked, in times of what was seen.
        growth_mib: growth in MiB over the later half of what was seen that counts at all.
        rest_mib: so much free space or less is a finding at once.
    """

    metrics = frozenset({"free_bytes"})

    def __init__(
        self,
        *,
        seconds: float = 300.0,
        horizon: float = 20.0,
        growth_mib: float = 256.0,
        rest_mib: float = 200.0,
    ) -> None:
        super().__init__(seconds=seconds, horizon=horizon, growth_mib=growth_mib)
        self.moments = Thinned(seconds / 2)
        self.rest_mib = positive("rest_mib", rest_mib)

    def judge_sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        if not self.due(sample):
            return
        for device, free in sample.of("free_bytes"):
            key = (sample.node, device)
            if free <= self.rest_mib * _MIB and key not in self._said:
                self._said.add(key)
                yield self.found(
                    devices=[device],
                    value=free,
                    threshold=self.rest_mib * _MIB,
                    message=f"only {spell_bytes(free)} are free on the volume of {_path(device)}",
                    suggestion=self.advise(device),
                    severity=Severity.ERROR,
                )
            yield from self.look(sample.node, sample.seconds, device, -free, free)

    def tell(self, device: str, per_second: float, seconds: float, room: float, left: float) -> str:
        """See the base class."""
        return (
            f"the volume of {_path(device)} fills by {spell_bytes(60 * per_second)} a minute; the {spell_bytes(room)} "
            f"that are free will be used up in {spell_seconds(left)}"
        )

    def advise(self, device: str) -> str:
        """See the base class."""
        if _path(device) == "/dev/shm":
            return (
                "shared memory holds the batches of data loader workers: fewer workers, less prefetching, or more room"
            )
        return "keep fewer checkpoints, remove old ones, or write elsewhere: what cannot be saved is lost"


class MemoryPressure(ProfilerRule):
    """The machine is short of memory: it swaps, stands still for want of it, or has killed a process.

    Args:
        percent: share of the time in which all work stood still for want of memory that is too much.
        swap_mib: MiB per second into and out of swap that are too much.
        seconds: how long it must last.
    """

    metrics = frozenset({"pressure_memory_full_percent", "swap_in_bytes_per_s", "oom_kills"})

    def __init__(self, *, percent: float = 10.0, swap_mib: float = 10.0, seconds: float = 30.0) -> None:
        super().__init__()
        self.percent = positive("percent", percent)
        self.swap_mib = positive("swap_mib", swap_mib)
        self.seconds = positive("seconds", seconds)
        self._windows: dict[tuple[str, str], Window] = {}
        self._kills: dict[str, float] = {}
        self._said: set[tuple[str, str]] = set()
        self._nearest = 0.0

    def judge_sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        kills = sample.get("cgroup", "oom_kills")
        if kills is not None and kills > self._kills.setdefault(sample.node, kills):
            count = kills - self._kills[sample.node]
            self._kills[sample.node] = kills
            yield self.found(
                devices=["cgroup"],
                value=count,
                threshold=0,
                message=f"the kernel has killed {count:.0f} process(es) of this job's container for want of memory",
                suggestion="raise the container's memory limit, or use less: fewer data loader workers, less prefetch",
                severity=Severity.ERROR,
            )
        stalled = sample.get("node", "pressure_memory_full_percent")
        swapped = [sample.get("node", f"swap_{way}_bytes_per_s") for way in ("in", "out")]
        for what, value, limit in (
            ("stalled", stalled, self.percent),
            ("swapped", sum(filter(None, swapped)) / _MIB if None not in swapped else None, self.swap_mib),
        ):
            if value is None:
                continue
            window = self._windows.get((sample.node, what))
            if window is None:
                window = self._windows[sample.node, what] = Window(self.seconds)
            mean = window.add(sample.seconds, value)
            if mean is None:
                continue
            self._nearest = max(self._nearest, mean / limit)
            if mean >= limit and (sample.node, what) not in self._said:
                self._said.add((sample.node, what))
                told = (
                    f"all work stood still {mean:.0f} % of the time"
                    if what == "stalled"
                    else f"{mean:.0f} MiB/s are swapped"
                )
                yield self.found(
                    devices=["node"],
                    value=mean,
                    threshold=limit,
                    message=f"{told} for want of memory, for {self.seconds:g} s by now",
                    suggestion="use less memory: fewer data loader workers, less prefetching, a smaller cache; "
                    "or a machine with more",
                )

    def missing(self) -> str:
        """See the base class."""
        return "" if self._windows else "neither memory pressure nor swapping was sampled"

    def margin(self) -> float | None:
        """See the base class."""
        return self._nearest if self._windows else None


class Window:
    """The mean of the last seconds of a series."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque()
        self._sum = 0.0
        self._began: float | None = None

    def add(self, time: float, value: float) -> float | None:
        """The mean over the window, None until it was seen whole."""
        self._began = time if self._began is None else self._began
        values, oldest = self._values, time - self._seconds
        values.append((time, value))
        self._sum += value
        while values[0][0] < oldest:
            self._sum -= values.popleft()[1]
        return self._sum / len(values) if self._began <= oldest else None


def _path(device: str) -> str:
    return device.removeprefix("volume:")
