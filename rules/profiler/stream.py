"""A run's steps and samples in the order of time, each once."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stepwatch.probe.store.follower import NodeCursor, TableCursor
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import TIMING_COLUMNS
from stepwatch.probe.store.tail import Tails
from stepwatch.rules.profiler.base import Layout, Layouts, Sample, end_ns
from stepwatch.rules.step import Step

Event = Step | Sample
_Timed = tuple[int, Event]
_time = itemgetter(0)

LATENESS_NS = 3_000_000_000
"""What is younger may still be overtaken by what another process has not written yet."""

_KEY = ["attempt", "step", "mode", "mode_step", "time_ns"]


class ProfileStream:
    """Steps of all ranks, without what they recorded beside their times, and samples of all nodes.

    Args:
        trace: the run.
        tails: the tails of its ranks.
    """

    def __init__(self, trace: Trace, tails: Tails) -> None:
        self._trace = trace
        self._tails = tails
        self._steps: dict[int, _RankSteps] = {}
        self._nodes: dict[str, NodeCursor] = {}
        self._layouts = Layouts()
        self._held: list[_Timed] = []

    def state(self) -> dict[str, Any]:
        """How far it has come, between two polls: plain data, for :meth:`go_on_from`."""
        return {
            "ranks": {rank: steps.position for rank, steps in self._steps.items()},
            "nodes": {node: cursor.position for node, cursor in self._nodes.items()},
            "layouts": self._layouts,
            "held": self._held,
        }

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Go on from where the stream of the same run was."""
        for rank, position in state["ranks"].items():
            self.follow(rank)
            self._steps[rank].go_to(position)
        for node, position in state["nodes"].items():
            self._nodes[node] = NodeCursor(self._trace, node)
            self._nodes[node].go_to(position)
        self._layouts, self._held = state["layouts"], state["held"]

    def follow(self, rank: int) -> None:
        """A rank will be asked for, in its latest attempt: to be said before it is, and when there is another one."""
        if rank not in self._steps:
            self._steps[rank] = _RankSteps(self._trace, rank, self._tails)
        self._steps[rank].follow()

    def poll(self, until_ns: int | None, ranks: Iterable[int]) -> Iterator[Event]:
        """What is new of these ranks and of all nodes, and older than ``until_ns``; everything where that is None."""
        for rank in ranks:
            if rank not in self._steps:
                self.follow(rank)
        for node in self._trace.nodes:
            self._nodes.setdefault(node, NodeCursor(self._trace, node))
        fresh = [self._steps[rank].read(final=until_ns is None) for rank in ranks]
        fresh += [_samples(node, cursor, self._layouts) for node, cursor in self._nodes.items()]
        ripe = len(self._held) if until_ns is None else bisect_left(self._held, until_ns, key=_time)
        held, self._held = self._held[:ripe], self._held[ripe:]
        for _, event in heapq.merge(held, *(self._ripe(events, until_ns) for events in fresh), key=_time):
            yield event
        self._held.sort(key=_time)

    def _ripe(self, events: Iterator[Event], until_ns: int | None) -> Iterator[_Timed]:
        """Those that are old enough; the others are kept."""
        for event in events:
            time_ns = when(event)
            if until_ns is None or time_ns < until_ns:
                yield time_ns, event
            else:
                self._held.append((time_ns, event))


def when(event: Event) -> int:
    """Time of a sample, or of a step's end."""
    return event.time_ns if isinstance(event, Sample) else end_ns(event)


class _RankSteps:
    """The steps of one rank: from the tail as far as it goes on from what was read, else from the files.

    Args:
        trace: the run.
        rank: the rank.
        tails: the tails of the run's ranks.
    """

    def __init__(self, trace: Trace, rank: int, tails: Tails) -> None:
        self._trace = trace
        self._rank = rank
        self._tails = tails
        self._cursor = TableCursor(trace, "steps", rank, [*_KEY, *TIMING_COLUMNS])
        self._attempt = -1
        self._tail = tails.reader(rank, self._attempt)
        self._at_the_tail = False

    @property
    def position(self) -> Any:
        """How far it has read."""
        return self._cursor.position

    def go_to(self, position: Any) -> None:
        """Go on from there."""
        self._cursor.go_to(position)

    def follow(self) -> None:
        """Follow the latest attempt."""
        attempt = len(self._trace.attempts(self._rank).entries) - 1
        if attempt != self._attempt:
            self._attempt, self._at_the_tail = attempt, False
            self._tail = self._tails.reader(self._rank, attempt)

    def read(self, *, final: bool) -> Iterator[Event]:
        """Steps that are new; where these are the last ones, from the files, which have all of them."""
        if final:
            yield from self._read_files(None)
            return
        if self._at_the_tail and (yield from self._follow_tail(self._reached())) and not self._tail.waiting:
            return
        beginning = self._tail.beginning(self._reached())
        yield from self._read_files(beginning)
        if beginning is not None:
            yield from self._follow_tail(max(beginning, self._reached()))
        self._at_the_tail = True

    def _reached(self) -> int:
        return self._cursor.next_flush(self._attempt)

    def _read_files(self, end: int | None) -> Iterator[Event]:
        self._cursor.stop_before = None if end is None else (self._attempt, end)
        for rows in self._cursor.read():
            places = zip(*(rows[name].to_pylist() for name in ("step", "mode", "mode_step", "time_ns")), strict=True)
            recorded = [name for name in TIMING_COLUMNS if rows[name].null_count < rows.num_rows]
            times = [(name, rows[name].to_pylist()) for name in recorded]
            for at, (step, mode, mode_step, time_ns) in enumerate(places):
                timing = {name: known for name, values in times if (known := values[at]) is not None}
                yield Step(self._rank, step, mode, mode_step, time_ns, timing=timing)

    def _follow_tail(self, flush: int) -> Generator[Event, None, bool]:
        """Steps of the tail; returns whether there was anything."""
        followed = False
        for frame in self._tail.take(flush):
            if frame.records is None:
                return False
            self._cursor.pass_over(self._attempt, frame.flush, frame.rows.get("steps", 0))
            for record in frame.records:
                place = (record.step, record.mode, record.mode_step, record.time_ns)
                yield Step(self._rank, *place, timing=record.timing)
            followed = True
        return followed


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
