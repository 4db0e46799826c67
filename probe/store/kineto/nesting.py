"""Who called whom on the host: intervals of one thread lie inside each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.kineto.parsing import Host


def parents(host: Host) -> NDArray[np.int64]:
    """For each event the index of the shortest one around it in its thread, -1 for the outermost."""
    order = np.lexsort((-host.end, host.start, host.thread))
    start, end, thread = (column[order].tolist() for column in (host.start, host.end, host.thread))
    found = np.full(len(order), -1, np.int64)
    around: list[int] = []
    inside = [-1] * len(order)
    for place in range(len(order)):
        if around and thread[around[-1]] != thread[place]:
            around.clear()
        begins = start[place]
        while around and end[around[-1]] <= begins:
            around.pop()
        if around:
            inside[place] = around[-1]
        around.append(place)
    places = np.array(inside, np.int64)
    found[order] = np.where(places >= 0, order[places], -1)
    return found


def self_times(host: Host, parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Nanoseconds of each event outside those that it called."""
    lengths = host.end - host.start
    nested = parent >= 0
    # A child's end is rounded on its own, and may lie a nanosecond behind its parent's.
    called = np.bincount(parent[nested], weights=lengths[nested], minlength=len(lengths)).astype(np.int64)
    own: NDArray[np.int64] = np.maximum(lengths - called, 0)
    return own
