"""What the devices did: computing, communicating, moving memory, or nothing, and why not."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.kineto.intervals import Intervals
from stepwatch.probe.store.kineto.parsing import DEVICE, HOST, Device, KinetoTrace

COMPUTATION, COMMUNICATION, MEMORY = KINDS = ("computation", "communication", "memory")
_COLLECTIVE = re.compile(r"^(?:nccl|rccl|oneccl|.*ncclKernel|.*ncclDevKernel)", re.IGNORECASE)
_SHORT_GAP_NS = 30_000
_GAPS = 5


@dataclass(frozen=True)
class Use:
    """How a device spent the time between its first and its last activity, in nanoseconds.

    Attributes:
        device: its number.
        span_ns: all of it; ``computation_ns`` + ``communication_ns`` + ``memory_ns`` + ``idle_ns``.
        computation_ns: any kernel that computes ran.
        communication_ns: collectives ran, and nothing computed: what communication costs.
        memory_ns: only copies and fills ran.
        idle_ns: nothing ran; ``host_ns`` + ``short_ns`` + ``other_ns``.
        host_ns: of it, the next kernel had not been launched when the one before it was done: the host is late.
        short_ns: of it, gaps up to 30 microseconds between kernels that waited already: the cost of starting one.
        other_ns: the rest: waiting for another stream, or for a launch that the trace does not tell.
        collectives_ns: collectives ran at all.
        hidden_ns: of it, something computed meanwhile.
    """

    device: int
    span_ns: int
    computation_ns: int
    communication_ns: int
    memory_ns: int
    idle_ns: int
    host_ns: int
    short_ns: int
    other_ns: int
    collectives_ns: int
    hidden_ns: int


@dataclass(frozen=True)
class Kernel:
    """A kind of kernel, copy or fill: ``kind`` is one of :data:`KINDS`, times are in nanoseconds."""

    name: str
    kind: str
    calls: int
    total_ns: int
    min_ns: int
    max_ns: int


@dataclass(frozen=True)
class Gap:
    """Time in which nothing ran on a device.

    Attributes:
        device: its number.
        start_ns: since the trace's time 0.
        duration_ns: how long.
        after, before: the kernels around it.
        host: what the host did for most of it; "" where it ran no operator.
    """

    device: int
    start_ns: int
    duration_ns: int
    after: str
    before: str
    host: str


@dataclass(frozen=True)
class Queue:
    """Kernels, copies and fills of a stream that were launched and had not begun.

    Attributes:
        device, stream: their numbers.
        launches: how many there were whose launch is known.
        mean, longest: length of the queue, as each launch found it, itself counted.
        delay_ns: median from launch to start.
    """

    device: int
    stream: int
    launches: int
    mean: float
    longest: int
    delay_ns: int


def kinds(trace: KinetoTrace) -> NDArray[np.int64]:
    """Of each activity on a device the index into :data:`KINDS`."""
    device = trace.device
    collective = np.fromiter((bool(_COLLECTIVE.match(name)) for name in trace.names), bool, len(trace.names))
    kernel = device.category == DEVICE.index("kernel")
    communicates = kernel & (collective[device.name] if len(collective) else False)
    return np.where(kernel, np.where(communicates, 1, 0), 2)


def uses(trace: KinetoTrace, kind: NDArray[np.int64], launched: NDArray[np.int64]) -> list[Use]:
    """How each device spent its time.

    Args:
        trace: the trace.
        kind: see :func:`kinds`.
        launched: see :func:`launch_times`.
    """
    device = trace.device
    found = []
    for number in np.unique(device.device).tolist():
        own = device.device == number
        computing, talking, moving = (
            Intervals.of(device.start[own & (kind == code)], device.end[own & (kind == code)]) for code in range(3)
        )
        working = computing | talking
        busy = working | moving
        span = int(busy.ends[-1] - busy.starts[0]) if len(busy.starts) else 0
        host, short, other = _idle_by_cause(device, own, busy, launched)
        found.append(
            Use(
                device=number,
                span_ns=span,
                computation_ns=computing.total,
                communication_ns=working.total - computing.total,
                memory_ns=busy.total - working.total,
                idle_ns=span - busy.total,
                host_ns=host,
                short_ns=short,
                other_ns=other,
                collectives_ns=talking.total,
                hidden_ns=talking.shared(computing),
            )
        )
    return found


def _idle_by_cause(
    device: Device, own: NDArray[np.bool_], busy: Intervals, launched: NDArray[np.int64]
) -> tuple[int, int, int]:
    gaps = busy.gaps()
    lengths = gaps.ends - gaps.starts
    starts, launches = device.start[own], launched[own]
    following = launches[np.searchsorted(starts, gaps.ends, "left")] if len(gaps.ends) else launches[:0]
    late = following > gaps.starts
    short = ~late & (following >= 0) & (lengths <= _SHORT_GAP_NS)
    return int(lengths[late].sum()), int(lengths[short].sum()), int(lengths[~late & ~short].sum())


def launch_times(trace: KinetoTrace) -> NDArray[np.int64]:
    """Of each activity on a device the time of the call that launched it, int64 [n]; -1 where the trace has none."""
    host, device = trace.host, trace.device
    runtime = [code for code, name in enumerate(HOST) if name.endswith(("runtime", "driver"))]
    calls = np.flatnonzero(np.isin(host.category, runtime) & (host.correlation > 0))
    calls = calls[np.argsort(host.correlation[calls], kind="stable")]
    numbers = host.correlation[calls]
    if not len(calls):
        return np.full(len(device.start), -1, np.int64)
    place = np.minimum(np.searchsorted(numbers, device.correlation), len(numbers) - 1)
    known = (numbers[place] == device.correlation) & (device.correlation > 0)
    return np.where(known, host.start[calls[place]], -1)


def kernels(trace: KinetoTrace, kind: NDArray[np.int64]) -> list[Kernel]:
    """Everything that ran on the devices by name, the longest in total first."""
    device = trace.device
    lengths = device.end - device.start
    key, place = np.unique(device.name * len(KINDS) + kind, return_inverse=True)
    calls = np.bincount(place, minlength=len(key))
    totals = np.bincount(place, weights=lengths, minlength=len(key)).astype(np.int64)
    shortest, longest = np.full(len(key), np.iinfo(np.int64).max), np.zeros(len(key), np.int64)
    np.minimum.at(shortest, place, lengths)
    np.maximum.at(longest, place, lengths)
    order = np.argsort(-totals, kind="stable")
    return [
        Kernel(
            name=trace.names[key[i] // len(KINDS)],
            kind=KINDS[key[i] % len(KINDS)],
            calls=int(calls[i]),
            total_ns=int(totals[i]),
            min_ns=int(shortest[i]),
            max_ns=int(longest[i]),
        )
        for i in order.tolist()
    ]


def queues(trace: KinetoTrace, launched: NDArray[np.int64]) -> list[Queue]:
    """How much work waited on each stream, the busiest first."""
    device = trace.device
    found = []
    streams = np.unique(np.stack([device.device, device.stream]), axis=1).T.tolist()
    for number, stream in streams:
        own = (device.device == number) & (device.stream == stream) & (launched >= 0)
        starts, launches = np.sort(device.start[own]), np.sort(launched[own])
        if not len(starts):
            continue
        waiting = np.arange(1, len(launches) + 1) - np.searchsorted(starts, launches, "right")
        delay = np.median(device.start[own] - launched[own])
        found.append(
            Queue(number, stream, len(launches), float(waiting.mean()), int(max(waiting.max(), 0)), int(delay))
        )
    return sorted(found, key=lambda queue: -queue.launches)


def largest_gaps(trace: KinetoTrace) -> list[Gap]:
    """The longest stretches in which a device did nothing, of all devices."""
    device = trace.device
    found = []
    for number in np.unique(device.device).tolist():
        own = np.flatnonzero(device.device == number)
        busy = Intervals.of(device.start[own], device.end[own])
        gaps = busy.gaps()
        ends = np.sort(device.end[own])
        by_end = own[np.argsort(device.end[own], kind="stable")]
        for place in np.argsort(gaps.starts - gaps.ends, kind="stable")[:_GAPS].tolist():
            start, end = int(gaps.starts[place]), int(gaps.ends[place])
            after = by_end[np.searchsorted(ends, start, "right") - 1]
            before = own[np.searchsorted(device.start[own], end, "left")]
            around = [trace.names[device.name[i]] for i in (after, before)]
            found.append(Gap(number, start, end - start, around[0], around[1], _host_during(trace, start, end)))
    return sorted(found, key=lambda gap: -gap.duration_ns)[:_GAPS]


def _host_during(trace: KinetoTrace, start: int, end: int) -> str:
    """The innermost name on the host that covers most of a stretch of time, at least half of it."""
    host = trace.host
    shared = np.minimum(host.end, end) - np.maximum(host.start, start)
    enough = np.flatnonzero(shared * 2 >= end - start)
    enough = enough[[not trace.names[i].startswith("ProfilerStep#") for i in host.name[enough]]]
    if not len(enough):
        return ""
    shortest = int(enough[np.argmin(host.end[enough] - host.start[enough])])
    return trace.names[int(host.name[shortest])]
