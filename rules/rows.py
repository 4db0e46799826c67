"""Rows of a growing table, handed out one step at a time as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stepwatch.probe.store.arrow import as_array
from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import STAT_COLUMNS, TIMING_COLUMNS
from stepwatch.rules.step import Stats, TensorSet

MODES = ("TRAIN", "EVAL", "PREDICT", "GLOBAL")

Key = tuple[int, int, int, int]
"""(attempt, step, index in ``MODES``, step of that mode)."""

_KEY = ("attempt", "step", "mode", "mode_step")

Commit = tuple[int, bool, dict[str, int]]
"""Of a step that is whole: when it began, whether it was saved, and how long its parts took, in nanoseconds."""

T = TypeVar("T")
Content = Callable[[int, int], T]
"""What rows [start, end) of a piece hold."""


class StepRows(Generic[T]):
    """Rows of one table in recorded order, handed out one step at a time.

    Rows of a step are contiguous. A piece of the table is made into arrays at once, so that a step costs a slice;
    only the pieces that a step needs are in memory.

    Attributes:
        pieces: how many pieces were read.

    Args:
        trace: the run.
        table: one of the step tables.
        rank: the rank.
        columns: columns to read, beside the key of a step.
        decode: makes a piece's rows into what a step gets of them.
    """

    def __init__(
        self, trace: Trace, table: str, rank: int, columns: tuple[str, ...], decode: Callable[[pa.Table], Content[T]]
    ) -> None:
        self._cursor = TableCursor(trace, table, rank, [*_KEY, *columns])
        self._decode = decode
        self._pieces: Iterator[pa.Table] | None = None
        self._rows: pa.Table | None = None
        self._content: Content[T] | None = None
        self._bounds: list[int] = []
        self._keys: list[Key] = []
        self._at = 0
        self._exhausted = False
        self.pieces = 0

    @property
    def settled(self) -> bool:
        """Whether every row that was read was handed out."""
        return self._pieces is None and self._at >= len(self._keys)

    @property
    def position(self) -> Any:
        """How far it has come, once :attr:`settled`: plain data, for :meth:`go_to`."""
        return self._cursor.position

    def go_to(self, position: Any) -> None:
        """Go on from where the rows of the same table were left."""
        self._cursor.go_to(position)

    def look_again(self, stop_before: tuple[int, int] | None = None) -> None:
        """More rows may have arrived since none were left; see :class:`TableCursor` for ``stop_before``."""
        self._cursor.stop_before = stop_before
        self._exhausted = False

    def next_flush(self, attempt: int) -> int:
        """First flush of an attempt of which not every row was read."""
        return self._cursor.next_flush(attempt)

    def begun(self, attempt: int) -> int:
        """First flush of an attempt of which no row was read."""
        return self._cursor.begun(attempt)

    def pass_over(self, attempt: int, flush: int, rows: int) -> None:
        """A flush is known from elsewhere; all before it was taken."""
        self._cursor.pass_over(attempt, flush, rows)

    def head(self) -> Key | None:
        """Key of the next step that has rows here, or None where no more were left when that was last looked at."""
        if self._at >= len(self._keys):
            self._load(None)
        return self._keys[self._at] if self._at < len(self._keys) else None

    def take(self) -> T:
        """What the step that :meth:`head` names has here."""
        assert self._rows is not None
        while self._at == len(self._keys) - 1:
            # The last step of a piece may go on in the next one.
            rest = self._rows.slice(self._bounds[self._at])
            if not self._load(rest):
                break
        assert self._content is not None
        found = self._content(self._bounds[self._at], self._bounds[self._at + 1])
        self._at += 1
        return found

    def _load(self, rest: pa.Table | None) -> bool:
        """Make the next piece current, after ``rest``; False where there is none yet."""
        if self._exhausted:
            return False
        if self._pieces is None:
            self._pieces = self._cursor.read()
        piece = next(self._pieces, None)
        if piece is None:
            self._pieces = None
            self._exhausted = True
            return False
        self.pieces += 1
        rows = piece if rest is None else pa.concat_tables([rest, piece])
        self._rows = rows = rows.combine_chunks()
        columns = [_numbers(rows, name) for name in _KEY]
        changed = np.zeros(rows.num_rows, dtype=bool)
        changed[0] = True
        for column in columns:
            changed[1:] |= column[1:] != column[:-1]
        starts = np.flatnonzero(changed)
        self._bounds = [*starts.tolist(), rows.num_rows]
        self._keys = list(zip(*(column[starts].tolist() for column in columns), strict=True))
        self._content = self._decode(rows)
        self._at = 0
        return True


def stats_of(
    trace: Trace,
    rank: int,
    tensor_set: Callable[[tuple[str, ...]], TensorSet],
    columns: tuple[str, ...] = STAT_COLUMNS,
) -> StepRows[Stats]:
    """The statistics of each step, but of what has no entries: the part that a rank has of a small sharded tensor.

    ``columns`` are those that are read, the first ones.
    """
    known: tuple[NDArray[np.int32], list[str], TensorSet] | None = None

    def tensors(codes: NDArray[np.int32], spelled: list[str]) -> TensorSet:
        # Most steps hold the same tensors as the one before; comparing numbers is cheaper than spelling names.
        nonlocal known
        if known is None or not (np.array_equal(known[0], codes) and known[1] == spelled):
            known = codes.copy(), spelled, tensor_set(tuple(spelled[code] for code in codes))
        return known[2]

    def decode(rows: pa.Table) -> Content[Stats]:
        matrix = np.empty((rows.num_rows, len(columns)))
        for index, name in enumerate(columns):
            matrix[:, index] = as_array(rows[name])
        codes, spelled = _encoded(rows["name"])
        if matrix[:, 0].all():
            return lambda start, end: Stats(tensors(codes[start:end], spelled), matrix[start:end])
        some = matrix[:, 0] > 0

        def content(start: int, end: int) -> Stats:
            kept = start + np.flatnonzero(some[start:end])
            return Stats(tensors(codes[kept], spelled), matrix[kept])

        return content

    return StepRows(trace, "stats", rank, ("name", *columns), decode)


def scalars_of(trace: Trace, rank: int) -> StepRows[dict[str, float]]:
    """The last value of each scalar of each step."""

    def decode(rows: pa.Table) -> Content[dict[str, float]]:
        names, values = _texts(rows["name"]), as_array(rows["value"]).tolist()
        return lambda start, end: dict(zip(names[start:end], values[start:end], strict=True))

    return StepRows(trace, "scalars", rank, ("name", "value"), decode)


def derived_of(trace: Trace, rank: int) -> StepRows[dict[tuple[str, str], NDArray[np.float64]]]:
    """The derived quantities of each step, by (tensor, quantity)."""

    def decode(rows: pa.Table) -> Content[dict[tuple[str, str], NDArray[np.float64]]]:
        keys = list(zip(_texts(rows["name"]), _texts(rows["quantity"]), strict=True))
        lists = rows["value"].chunk(0)
        values = as_array(lists.flatten())
        ends = np.cumsum(as_array(lists.value_lengths())).tolist()
        begins = [0, *ends]
        return lambda start, end: {keys[at]: values[begins[at] : ends[at]] for at in range(start, end)}

    return StepRows(trace, "derived", rank, ("name", "quantity", "value"), decode)


def values_of(trace: Trace, rank: int) -> StepRows[dict[str, NDArray[Any]]]:
    """The whole tensors of each step."""

    def decode(rows: pa.Table) -> Content[dict[str, NDArray[Any]]]:
        def content(start: int, end: int) -> dict[str, NDArray[Any]]:
            return {
                row["name"]: np.frombuffer(row["data"], dtype=np.dtype(row["dtype"])).reshape(row["shape"])
                for row in rows.slice(start, end - start).to_pylist()
            }

        return content

    return StepRows(trace, "values", rank, ("name", "dtype", "shape", "data"), decode)


def commits_of(trace: Trace, rank: int) -> StepRows[Commit]:
    """Which steps are whole."""

    def decode(rows: pa.Table) -> Content[Commit]:
        begun, saved = rows["time_ns"].to_pylist(), rows["saved"].to_pylist()
        timing = {name: rows[name].to_pylist() for name in TIMING_COLUMNS}

        def content(start: int, _: int) -> Commit:
            taken = {name: values[start] for name, values in timing.items() if values[start] is not None}
            return begun[start] or 0, bool(saved[start]), taken

        return content

    return StepRows(trace, "steps", rank, ("time_ns", "saved", *TIMING_COLUMNS), decode)


def _encoded(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[str]]:
    """A column of text without chunks as numbers, and the texts that they stand for."""
    encoded = column.chunk(0)
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    return as_array(encoded.indices), encoded.dictionary.to_pylist()


def _texts(column: pa.ChunkedArray) -> list[str]:
    codes, spelled = _encoded(column)
    return [spelled[code] for code in codes.tolist()]


def _numbers(rows: pa.Table, name: str) -> NDArray[np.int64]:
    if name != "mode":
        return as_array(rows[name])
    codes, spelled = _encoded(rows[name])
    return np.array([MODES.index(mode) for mode in spelled], dtype=np.int64)[codes]
