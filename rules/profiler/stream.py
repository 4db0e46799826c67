"""A run's steps and samples in the order of time, each once."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stepwatch.probe.store.follower import NodeCursor, TableCursor
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import TIMING_COLUMNS
from stepwatch.rules.profiler.base import Layout, Layouts, Sample, end_ns
from stepwatch.rules.step import Step

Event = Step | Sample

LATENESS_NS = 3_000_000_000
"""What is younger may still be overtaken by what another process has not written yet."""

_KEY = ["attempt", "step", "mode", "mode_step", "time_ns"]


class ProfileStream:
    """Steps of all ranks, without what they recorded beside their times, and samples of all nodes.

    Args:
        trace: the run.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._steps: dict[int, TableCursor] = {}
        self._nodes: dict[str, NodeCursor] = {}
        self._layouts = Layouts()
        self._held: list[Event] = []

    def poll(self, until_ns: int | None) -> Iterator[Event]:
        """What is new and older than ``until_ns``; everything where that is None."""
        for rank in self._trace.ranks:
            if rank not in self._steps:
                self._steps[rank] = TableCursor(self._trace, "steps", rank, [*_KEY, *TIMING_COLUMNS])
        for node in self._trace.nodes:
            self._nodes.setdefault(node, NodeCursor(self._trace, node))
        fresh: list[Iterator[Event]] = [_steps(rank, cursor) for rank, cursor in self._steps.items()]
        fresh += [_samples(node, cursor, self._layouts) for node, cursor in self._nodes.items()]
        held, self._held = self._held, []
        for event in heapq.merge(held, *fresh, key=when):
            if until_ns is not None and when(event) >= until_ns:
                self._held.append(event)
            else:
                yield event


def when(event: Event) -> int:
    """Time of a sample, or of a step's end."""
    return event.time_ns if isinstance(event, Sample) else end_ns(event)


def _steps(rank: int, cursor: TableCursor) -> Iterator[Event]:
    for rows in cursor.read():
        for row in rows.to_pylist():
            timing = {name: row[name] for name in TIMING_COLUMNS if row[name] is not None}
            yield Step(rank, row["step"], row["mode"], row["mode_step"], row["time_ns"], timing=timing)


def _samples(node: str, cursor: NodeCursor, layouts: Layouts) -> Iterator[Event]:
    """Samples of a node; the last one of a piece may go on in the next."""
    rest: pa.Table | None = None
    for rows in cursor.read():
        joined = (rows if rest is None else pa.concat_tables([rest, rows])).combine_chunks()
        times = joined["time_ns"].to_numpy()
        bounds = [0, *(np.flatnonzero(np.diff(times)) + 1).tolist()]
        yield from _grouped(node, joined.slice(0, bounds[-1]), bounds, layouts)
        rest = joined.slice(bounds[-1])
    if rest is not None:
        yield from _grouped(node, rest, [0, rest.num_rows], layouts)


def _grouped(node: str, rows: pa.Table, bounds: list[int], layouts: Layouts) -> Iterator[Sample]:
    if not rows.num_rows:
        return
    times = rows["time_ns"].to_numpy()
    devices, metrics = (pc.dictionary_encode(rows[name]).combine_chunks() for name in ("device", "metric"))
    width = len(metrics.dictionary)
    names = [(device, metric) for device in devices.dictionary.to_pylist() for metric in metrics.dictionary.to_pylist()]
    codes = devices.indices.to_numpy().astype(np.int64) * width + metrics.indices.to_numpy()
    values = rows["value"].to_pylist()
    known: dict[bytes, Layout] = {}
    for start, end in pairwise(bounds):
        pattern = codes[start:end].tobytes()
        layout = known.get(pattern)
        if layout is None:
            layout = known[pattern] = layouts.of(tuple(names[code] for code in codes[start:end]))
        yield Sample(node, int(times[start]), layout, values[start:end])
