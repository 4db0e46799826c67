"""How long a process waited for the others, of timelines of Horovod and of SageMaker's data parallel library.

There each tensor has a track, on which its exchange is negotiated and carried out while the backward pass goes on.
The last tensor that a process has to offer is there at the end of that pass; what passes from then until all are
exchanged is waiting, as in the runs that our own hook records. When a process offered a tensor the coordinator notes on
the track, by an event with the number of the rank; without one it counts when its exchange began.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

from stepwatch.probe.store.smdebug.profiler import TimelineEvent

KINDS = ("horovod_timeline", "smdataparallel_timeline")
"""Timelines of exchanges."""


def waited(events: Iterable[TimelineEvent], steps: Sequence[TimelineEvent], process: str) -> list[int | None]:
    """Nanoseconds that a process waited in each of its steps; None where nothing was exchanged.

    Args:
        events: of its timeline of exchanges.
        steps: its steps, by when they began.
        process: ``RANK-HOST``, or ``PROCESS-HOST``.
    """
    rank = process.partition("-")[0]
    starts = [step.start_us for step in steps]
    offered: list[dict[int, float]] = [defaultdict(lambda: -1.0) for _ in steps]
    began: list[dict[int, float]] = [{} for _ in steps]
    ended: list[float] = [0.0 for _ in steps]
    for event in events:
        place = bisect_right(starts, event.start_us) - 1
        if place < 0 or event.kind != "X":
            continue
        if event.name.isdigit():
            if event.name == rank:
                offered[place][event.track] = event.start_us
            continue
        earliest = began[place].get(event.track, event.start_us)
        began[place][event.track] = min(earliest, event.start_us)
        ended[place] = max(ended[place], event.start_us + event.duration_us)
    found: list[int | None] = []
    for step, own, first, end in zip(steps, offered, began, ended, strict=True):
        last = max((max(own[track], at) for track, at in first.items()), default=None)
        until = min(end, step.start_us + step.duration_us)
        found.append(None if last is None else max(int((until - last) * 1000), 0))
    return found
