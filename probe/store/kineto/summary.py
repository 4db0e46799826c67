"""A trace in small tables: what took the time, on the host and on the devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stepwatch.probe.store.kineto.devices import (
    Gap,
    Kernel,
    Queue,
    Use,
    kernels,
    kinds,
    largest_gaps,
    launch_times,
    queues,
    uses,
)
from stepwatch.probe.store.kineto.nesting import parents, self_times
from stepwatch.probe.store.kineto.parsing import HOST, KinetoTrace
from stepwatch.probe.store.kineto.steps import StepTimes, step_times

_LISTED = 50


@dataclass(frozen=True)
class Operator:
    """An operator of the host, or a call of the device's runtime.

    Attributes:
        name: its name.
        calls: how often it ran.
        self_ns: inside it, and outside those that it called.
        total_ns: inside it.
        dtypes: data types of its first input, the most frequent first; empty where shapes were not recorded.
    """

    name: str
    calls: int
    self_ns: int
    total_ns: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class MemoryUse:
    """What was allocated on a device while the profiler ran, in bytes.

    Attributes:
        device: number of the accelerator, -1 for the host.
        allocations: how many.
        allocated_bytes: all of them together.
        peak_bytes: most that was allocated at a time: on an accelerator in all, on the host by torch.
    """

    device: int
    allocations: int
    allocated_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Summary:
    """What a trace of one rank tells; times are in nanoseconds.

    Attributes:
        rank: the rank.
        base_ns: nanoseconds since the epoch at the trace's time 0, 0 where that is not known.
        start_ns: first event, since time 0.
        events: number of events in the trace.
        span_ns: from the first event to the last.
        steps: the annotated steps.
        operators: by self time, the largest first; those beyond the first 50 are left out.
        operators_ns: self time of all operators, also of those left out.
        uses: by device.
        kernels: by total time, the largest first; those beyond the first 50 are left out.
        kernels_ns: total time of all, by kind: those that run side by side count each.
        queues: by stream.
        gaps: the longest on any device.
        memory: by device.
    """

    rank: int
    base_ns: int
    start_ns: int
    events: int
    span_ns: int
    steps: tuple[StepTimes, ...]
    operators: tuple[Operator, ...]
    operators_ns: int
    uses: tuple[Use, ...]
    kernels: tuple[Kernel, ...]
    kernels_ns: Mapping[str, int]
    queues: tuple[Queue, ...]
    gaps: tuple[Gap, ...]
    memory: tuple[MemoryUse, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Summary:
        """The summary that :meth:`to_json` was of.

        Raises:
            KeyError, TypeError: it is of something else.
        """
        kinds_of = {
            "steps": StepTimes,
            "uses": Use,
            "kernels": Kernel,
            "queues": Queue,
            "gaps": Gap,
            "memory": MemoryUse,
        }
        found: dict[str, Any] = {**content}
        for name, kind in kinds_of.items():
            found[name] = tuple(kind(**row) for row in content[name])
        found["operators"] = tuple(Operator(**{**row, "dtypes": tuple(row["dtypes"])}) for row in content["operators"])
        return Summary(**found)


def summarise(trace: KinetoTrace, rank: int) -> Summary:
    """Summarise a trace; ``rank`` is whose it is."""
    edges = [trace.host.start, trace.host.end, trace.device.start, trace.device.end]
    times = np.concatenate(edges)
    kind, launched = kinds(trace), launch_times(trace)
    found_operators = _operators(trace)
    found_kernels = kernels(trace, kind)
    totals: dict[str, int] = {}
    for kernel in found_kernels:
        totals[kernel.kind] = totals.get(kernel.kind, 0) + kernel.total_ns
    return Summary(
        rank=rank,
        base_ns=trace.base_ns,
        start_ns=int(times.min()) if len(times) else 0,
        events=trace.events,
        span_ns=int(times.max() - times.min()) if len(times) else 0,
        steps=tuple(step_times(trace)),
        operators=tuple(found_operators[:_LISTED]),
        operators_ns=sum(operator.self_ns for operator in found_operators),
        uses=tuple(uses(trace, kind, launched)),
        kernels=tuple(found_kernels[:_LISTED]),
        kernels_ns=totals,
        queues=tuple(queues(trace, launched)),
        gaps=tuple(largest_gaps(trace)),
        memory=tuple(_memory(trace)),
    )


def _operators(trace: KinetoTrace) -> list[Operator]:
    host = trace.host
    own = self_times(host, parents(host))
    counted = np.flatnonzero(host.category != HOST.index("user_annotation"))
    names, place = np.unique(host.name[counted], return_inverse=True)
    calls = np.bincount(place, minlength=len(names))
    self_ns = np.bincount(place, weights=own[counted], minlength=len(names)).astype(np.int64)
    total_ns = np.bincount(place, weights=(host.end - host.start)[counted], minlength=len(names)).astype(np.int64)
    dtypes = np.zeros((len(names), len(trace.dtypes)), np.int64)
    typed = host.dtype[counted] >= 0
    np.add.at(dtypes, (place[typed], host.dtype[counted][typed]), 1)
    return [
        Operator(
            name=trace.names[names[i]],
            calls=int(calls[i]),
            self_ns=int(self_ns[i]),
            total_ns=int(total_ns[i]),
            dtypes=tuple(trace.dtypes[j] for j in np.argsort(-dtypes[i], kind="stable") if dtypes[i, j]),
        )
        for i in np.argsort(-self_ns, kind="stable").tolist()
    ]


def _memory(trace: KinetoTrace) -> list[MemoryUse]:
    memory = trace.memory
    found = []
    for device in np.unique(memory.device).tolist():
        own = memory.device == device
        taken = memory.bytes[own]
        taken = taken[taken > 0]
        found.append(MemoryUse(device, len(taken), int(taken.sum()), int(max(memory.total[own].max(), 0))))
    return found
