"""Judges a trace: assembles its rows into steps and feeds them to the engine, once each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stepwatch.probe.store.attempts import Attempts
from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS, TIMING_COLUMNS
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.engine import Engine
from stepwatch.rules.finding import Finding, RuleResult
from stepwatch.rules.step import Stats, Step, StepBuilder, TensorSet

_KEY = ("attempt", "step", "mode", "mode_step")
_COLUMNS = {
    "stats": ("name", *STAT_COLUMNS),
    "derived": ("name", "quantity", "value"),
    "scalars": ("name", "value"),
    "values": ("name", "dtype", "shape", "data"),
    "steps": ("time_ns", "saved", *TIMING_COLUMNS),
}
_MODES = ("TRAIN", "EVAL", "PREDICT", "GLOBAL")

Key = tuple[int, int, int, int]


class _Rows:
    """Rows of one table in recorded order, handed out one step at a time.

    Rows of a step are contiguous. Only the pieces that a step needs are in memory.
    """

    def __init__(self, trace: Trace, table: str, rank: int) -> None:
        self._cursor = TableCursor(trace, table, rank, [*_KEY, *_COLUMNS[table]])
        self._pieces: Iterator[pa.Table] | None = None
        self._rows: pa.Table | None = None
        self._bounds: NDArray[np.intp] = np.zeros(0, np.intp)
        self._keys: list[Key] = []
        self._at = 0

    def head(self) -> Key | None:
        """Key of the next step that has rows here, or None where no more rows have arrived."""
        if self._at >= len(self._keys):
            self._load(None)
        return self._keys[self._at] if self._at < len(self._keys) else None

    def take(self) -> pa.Table:
        """Rows of the step that :meth:`head` names."""
        assert self._rows is not None
        key = self._keys[self._at]
        while self._at == len(self._keys) - 1:
            # The last step of a piece may go on in the next one.
            rest = self._rows.slice(self._bounds[self._at])
            if not self._load(rest):
                break
        start, end = self._bounds[self._at], self._bounds[self._at + 1]
        assert self._keys[self._at] == key
        self._at += 1
        return self._rows.slice(start, end - start)

    def _load(self, rest: pa.Table | None) -> bool:
        """Make the next piece current, after ``rest``; False where there is none yet."""
        if self._pieces is None:
            self._pieces = self._cursor.read()
        piece = next(self._pieces, None)
        if piece is None:
            self._pieces = None
            return False
        rows = piece if rest is None else pa.concat_tables([rest, piece])
        self._rows = rows.combine_chunks()
        columns = [_numbers(self._rows, name) for name in _KEY]
        changed = np.zeros(rows.num_rows, dtype=bool)
        changed[0] = True
        for column in columns:
            changed[1:] |= column[1:] != column[:-1]
        starts = np.flatnonzero(changed)
        self._bounds = np.append(starts, rows.num_rows)
        self._keys = list(zip(*(column[starts].tolist() for column in columns), strict=True))
        self._at = 0
        return True


def _precedes(one: Key, other: Key) -> bool:
    """Whether a step was recorded before another; within a global step only known of the same mode."""
    return one[:2] < other[:2] or (one[:3] == other[:3] and one[3] < other[3])


def _numbers(rows: pa.Table, name: str) -> NDArray[np.int64]:
    column = rows[name]
    if name == "mode":
        column = pc.index_in(column, pa.array(_MODES))
    numbers: NDArray[np.int64] = column.to_numpy()
    return numbers


class StepStream:
    """The steps of one rank in recorded order, each once.

    A step is complete when its row of ``steps`` has come; the rows of other tables were written before it.
    Rows whose row of ``steps`` never comes, because the job was killed in the middle of a flush or a file is
    damaged, are delivered without it: before the next step, or by :meth:`drain`. Statistics of steps that were not
    saved, written later because something happened, are for people: rules in the training process have not seen them.

    Args:
        trace: the run.
        rank: the rank.
        whole_tensors: whether steps have their ``values``.
    """

    def __init__(self, trace: Trace, rank: int, *, whole_tensors: bool = False) -> None:
        self._trace = trace
        self._tensors: dict[str, TensorInfo] = {}
        self._builder = StepBuilder(rank, self._describe)
        self._rank = rank
        self._steps = _Rows(trace, "steps", rank)
        contents = [table for table in _COLUMNS if table != "steps" and (whole_tensors or table != "values")]
        self._contents = {table: _Rows(trace, table, rank) for table in contents}
        self._names: tuple[pa.ChunkedArray, TensorSet] | None = None
        self._delivered: set[Key] = set()  # of the latest global step

    def poll(self) -> Iterator[Step]:
        """Steps that are new."""
        while (key := self._steps.head()) is not None:
            row = self._steps.take()
            yield from self._uncommitted(key)
            yield self._build(key, row)

    def drain(self) -> Iterator[Step]:
        """What is left when no more will be written."""
        yield from self._uncommitted(None)

    def _uncommitted(self, before: Key | None) -> Iterator[Step]:
        """Steps that have no row of ``steps``, as far as they precede a step that has."""
        while True:
            self._skip_late()
            heads = [head for rows in self._contents.values() if (head := rows.head()) is not None]
            passed = [head for head in heads if before is None or _precedes(head, before)]
            if not passed:
                return
            yield self._build(min(passed, key=lambda key: (key[:2], key[3])), None)

    def _skip_late(self) -> None:
        rows = self._contents["stats"]
        while (head := rows.head()) is not None and (head in self._delivered or self._has_passed(head)):
            rows.take()

    def _has_passed(self, key: Key) -> bool:
        latest = next(iter(self._delivered), None)
        return latest is not None and key[:2] < latest[:2]

    def _build(self, key: Key, row: pa.Table | None) -> Step:
        if self._delivered and next(iter(self._delivered))[:2] != key[:2]:
            self._delivered.clear()
        self._delivered.add(key)
        _, step, mode, mode_step = key
        built = Step(self._rank, step, _MODES[mode], mode_step, time_ns=0, saved=row is None)
        if row is not None:
            built.time_ns = int(row["time_ns"][0].as_py() or 0)
            built.saved = bool(row["saved"][0].as_py())
            timing = {name: row[name][0].as_py() for name in TIMING_COLUMNS}
            built.timing = {name: value for name, value in timing.items() if value is not None}
        parts = {table: rows.take() for table, rows in self._contents.items() if rows.head() == key}
        if "stats" in parts and built.saved:
            stats = parts["stats"]
            matrix = np.column_stack([stats[name].to_numpy().astype(np.float64) for name in STAT_COLUMNS])
            built.stats = Stats(self._tensor_set(stats["name"]), matrix)
        if "scalars" in parts:
            rows = parts["scalars"]
            built.scalars = dict(zip(rows["name"].to_pylist(), rows["value"].to_pylist(), strict=True))
        if "values" in parts:
            built.values = {
                row["name"]: np.frombuffer(row["data"], dtype=np.dtype(row["dtype"])).reshape(row["shape"])
                for row in parts["values"].to_pylist()
            }
        if "derived" in parts:
            rows = parts["derived"]
            built.derived = {
                (name, quantity): np.array(value, dtype=np.float64)
                for name, quantity, value in zip(
                    rows["name"].to_pylist(),
                    rows["quantity"].to_pylist(),
                    rows["value"].to_pylist(),
                    strict=True,
                )
            }
        return built

    def _tensor_set(self, names: pa.ChunkedArray) -> TensorSet:
        # Most steps hold the same tensors as the one before; comparing columns is cheaper than spelling them.
        if self._names is None or not self._names[0].equals(names):
            self._names = (names, self._builder.tensor_set(tuple(names.to_pylist())))
        return self._names[1]

    def _describe(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            self._tensors = self._trace.tensors()
        return self._tensors.get(name) or TensorInfo(name)


@dataclass
class Analysis:
    """What the rules say of a run.

    Attributes:
        results: one verdict per rule.
        findings: all findings, by the step at which they were decided.
        live: whether the run was still being written.
        notes: what the hook could not record.
        warnings: damaged files that were left out.
        counters: dropped records and errors, summed over ranks.
    """

    results: list[RuleResult]
    findings: list[Finding]
    live: bool
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)


class LiveAnalysis:
    """Judges a run as it grows.

    Args:
        trace: the run.
        specs: the rules.
    """

    def __init__(self, trace: Trace, specs: Sequence[RuleSpec]) -> None:
        self._trace = trace
        self._engine = Engine(specs)
        self._whole_tensors = any(spec.rule.whole_tensors for spec in specs)
        self._streams: dict[int, tuple[StepStream, Attempts]] = {}
        self._concluded: set[int] = set()
        self.steps = 0

    def poll(self, ranks: Iterable[int] | None = None) -> list[Finding]:
        """Judge what is new, of these ranks or of all, and return what was found in it."""
        found: list[Finding] = []
        self._trace.refresh()
        for rank in self._trace.ranks if ranks is None else ranks:
            ended = self._trace.end(rank) is not None  # asked first: what is read then is all there is
            found += self._feed(self._stream(rank).poll())
            if ended:
                found += self._conclude(rank)
        if self._trace.live():
            for rank in self._streams.keys() - self._concluded:
                found += self._engine.waited(rank, time.time_ns())
        return found

    def conclude(self) -> list[Finding]:
        """No more will come, whether the run said so or was killed."""
        found = self.poll()
        for rank in self._trace.ranks:
            found += self._conclude(rank)
        return found

    def _feed(self, steps: Iterator[Step]) -> list[Finding]:
        found: list[Finding] = []
        for step in steps:
            self.steps += 1
            found += self._engine.feed(step)
        return found

    def _conclude(self, rank: int) -> list[Finding]:
        if rank in self._concluded:
            return []
        self._concluded.add(rank)
        return self._feed(self._stream(rank).drain()) + self._engine.conclude(rank)

    def analysis(self, *, live: bool) -> Analysis:
        """The verdicts so far."""
        return Analysis(
            results=self._engine.results(live=live),
            findings=self._engine.findings(),
            live=live,
            notes=self._trace.notes,
            warnings=list(self._trace.warnings),
            counters=self._trace.counters,
        )

    def _stream(self, rank: int) -> StepStream:
        attempts = self._trace.attempts(rank)
        known = self._streams.get(rank)
        if known is None or known[1] != attempts:
            if known is not None:
                self._engine.restart(rank)
                self._concluded.discard(rank)
            stream = StepStream(self._trace, rank, whole_tensors=self._whole_tensors)
            self._streams[rank] = known = (stream, attempts)
        return known[0]


def analyze(trace: Trace, specs: Sequence[RuleSpec]) -> Analysis:
    """Judge all that a run holds by now."""
    live = trace.live()
    judged = LiveAnalysis(trace, specs)
    if live:
        judged.poll()
    else:
        judged.conclude()
    return judged.analysis(live=live)
