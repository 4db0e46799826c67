"""Judges a trace: assembles its rows into steps and feeds them to the engine, once each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from stepwatch.rules.step import Stats, Step, StepBuilder

_KEY = ("attempt", "step", "mode", "mode_step")
_COLUMNS = {
    "stats": ("name", *STAT_COLUMNS),
    "derived": ("name", "quantity", "value"),
    "scalars": ("name", "value"),
    "steps": ("time_ns", *TIMING_COLUMNS),
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


def _numbers(rows: pa.Table, name: str) -> NDArray[np.int64]:
    column = rows[name]
    if name == "mode":
        column = pc.index_in(column, pa.array(_MODES))
    numbers: NDArray[np.int64] = column.to_numpy()
    return numbers


class StepStream:
    """The steps of one rank in recorded order, each once, as far as they are committed.

    A step is complete when its row of ``steps`` has come; the rows of other tables were written before it.

    Args:
        trace: the run.
        rank: the rank.
    """

    def __init__(self, trace: Trace, rank: int) -> None:
        self._trace = trace
        self._tensors: dict[str, TensorInfo] = {}
        self._builder = StepBuilder(rank, self._describe)
        self._rank = rank
        self._tables = {table: _Rows(trace, table, rank) for table in _COLUMNS}

    def poll(self) -> Iterator[Step]:
        """Steps that are new."""
        steps = self._tables["steps"]
        while (key := steps.head()) is not None:
            row = steps.take()
            parts = {}
            for table, rows in self._tables.items():
                if table != "steps":
                    while (head := rows.head()) is not None and head[0] < key[0]:
                        rows.take()  # never committed: the attempt was killed in the middle of a flush
                    if head == key:
                        parts[table] = rows.take()
            yield self._build(key, row, parts)

    def _build(self, key: Key, row: pa.Table, parts: dict[str, pa.Table]) -> Step:
        _, step, mode, mode_step = key
        built = Step(self._rank, step, _MODES[mode], mode_step, int(row["time_ns"][0].as_py() or 0))
        timing = {name: row[name][0].as_py() for name in TIMING_COLUMNS}
        built.timing = {name: value for name, value in timing.items() if value is not None}
        if "stats" in parts:
            stats = parts["stats"]
            matrix = np.column_stack([stats[name].to_numpy().astype(np.float64) for name in STAT_COLUMNS])
            names = tuple(stats["name"].to_pylist())
            built.stats = Stats(self._builder.tensor_set(names), matrix)
        if "scalars" in parts:
            rows = parts["scalars"]
            built.scalars = dict(zip(rows["name"].to_pylist(), rows["value"].to_pylist(), strict=True))
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
        self._streams: dict[int, tuple[StepStream, Attempts]] = {}
        self._concluded: set[int] = set()
        self.steps = 0

    def poll(self) -> list[Finding]:
        """Judge what is new and return what was found in it."""
        found: list[Finding] = []
        for rank in self._trace.ranks:
            stream = self._stream(rank)
            ended = self._trace.end(rank) is not None
            for step in stream.poll():
                self.steps += 1
                found += self._engine.feed(step)
            if ended and rank not in self._concluded:
                self._concluded.add(rank)
                found += self._engine.conclude(rank)
        return found

    def conclude(self) -> list[Finding]:
        """No more will come, whether the run said so or was killed."""
        found = self.poll()
        for rank in self._trace.ranks:
            if rank not in self._concluded:
                self._concluded.add(rank)
                found += self._engine.conclude(rank)
        return found

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
            self._streams[rank] = known = (StepStream(self._trace, rank), attempts)
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
