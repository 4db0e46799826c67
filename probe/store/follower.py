"""Reads a growing table: each call returns only what is new, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stepwatch.probe.store.layout import Part, list_parts, node_folder, rank_folder
from stepwatch.probe.store.reader import Trace, iterate_file
from stepwatch.probe.store.tables import ROW_GROUP_ROWS

_WHOLE_TENSORS = 32
"""Rows of whole tensors in a piece, of which a few may fill the memory."""

_KEPT = 64


@dataclass
class _Progress:
    """How far one attempt's files were read.

    Attributes:
        next_flush: first flush of which not every row was read.
        begun: first flush behind the files of which rows were read.
        rows: rows read.
        rows_before: rows read before each file that was begun, by its first flush.
    """

    next_flush: int = 0
    begun: int = 0
    rows: int = 0
    rows_before: dict[int, int] = field(default_factory=dict)


class TableCursor:
    """Position in one rank's table.

    Attributes:
        stop_before: (attempt, flush): files that begin there or later are left for another time; None: none are.

    Files are joined while they are read. A joined file begins where one of its parts began, and holds the
    same rows in the same order, so its first flush tells how many of its rows are known already.

    Args:
        trace: the run.
        table: one of the step tables.
        rank: the rank.
        columns: columns to read; ``step`` and ``mode`` must be among them.
        piece: rows to read at a time; of whole tensors few by default.
    """

    def __init__(self, trace: Trace, table: str, rank: int, columns: Sequence[str], piece: int | None = None) -> None:
        self._trace = trace
        self._folder = rank_folder(trace.path, table, rank)
        self._rank = rank
        self._columns = list(columns)
        self._piece = piece or (_WHOLE_TENSORS if "data" in self._columns else ROW_GROUP_ROWS)
        self._progress: dict[int, _Progress] = {}
        self._listed: set[tuple[int, int]] = set()
        self.stop_before: tuple[int, int] | None = None

    def read(self) -> Iterator[pa.Table]:
        """New rows, in pieces; may be left before its end and called again."""
        while True:
            parts = list_parts(self._folder)
            self._forget(parts)
            part = next((part for part in parts if self._is_new(part)), None)
            if part is None:
                return
            try:
                yield from self._read_part(part)
            except FileNotFoundError:
                continue  # joined with others since it was listed

    def next_flush(self, attempt: int) -> int:
        """First flush of an attempt of which not every row was read."""
        progress = self._progress.get(attempt)
        return progress.next_flush if progress is not None else 0

    def begun(self, attempt: int) -> int:
        """First flush of an attempt of which no row was read."""
        progress = self._progress.get(attempt)
        return progress.begun if progress is not None else 0

    @property
    def position(self) -> dict[int, _Progress]:
        """How far it has read: plain data, for :meth:`go_to` of another cursor of the same table."""
        return self._progress

    def go_to(self, position: dict[int, _Progress]) -> None:
        """Go on from where another cursor was."""
        self._progress = position

    def pass_over(self, attempt: int, flush: int, rows: int) -> None:
        """A flush is known from elsewhere: go on behind it. It has so many rows, and all before it was read."""
        progress = self._progress.setdefault(attempt, _Progress())
        progress.next_flush = progress.begun = flush + 1
        progress.rows += rows

    def _forget(self, parts: Sequence[Part]) -> None:
        """Drop what is known of files that were joined: a file that is joined later begins where one of these does.

        A file must be missing from two listings: one that is made while files are joined may hold neither the parts
        nor the whole.
        """
        there = {(part.attempt, part.first) for part in parts}
        listed, self._listed = self._listed | there, there
        if sum(len(progress.rows_before) for progress in self._progress.values()) < 2 * len(parts) + _KEPT:
            return
        for attempt, progress in self._progress.items():
            progress.rows_before = {f: rows for f, rows in progress.rows_before.items() if (attempt, f) in listed}

    def _is_new(self, part: Part) -> bool:
        if self.stop_before is not None and (part.attempt, part.first) >= self.stop_before:
            return False
        progress = self._progress.get(part.attempt)
        return progress is None or part.last >= progress.next_flush

    def _read_part(self, part: Part) -> Iterator[pa.Table]:
        progress = self._progress.setdefault(part.attempt, _Progress())
        if part.first not in progress.rows_before:
            progress.rows_before[part.first] = self._rows_before(part, progress)
        skip = progress.rows - progress.rows_before[part.first]
        progress.begun = part.last + 1
        path = self._folder / part.file_name
        try:
            for rows in iterate_file(path, self._columns, self._piece):
                fresh = rows.slice(min(skip, rows.num_rows))
                skip -= rows.num_rows - fresh.num_rows
                if fresh.num_rows:
                    progress.rows += fresh.num_rows
                    kept = self._kept(fresh, part.attempt)
                    if kept.num_rows:
                        yield kept
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            self._trace.warn(path, error)
        progress.next_flush = part.last + 1

    def _rows_before(self, part: Part, progress: _Progress) -> int:
        """Rows of an attempt before a file; it may begin before flushes that were passed over."""
        if part.first >= progress.next_flush:
            return progress.rows
        before = [each for each in list_parts(self._folder) if each.attempt == part.attempt and each.first < part.first]
        return sum(self._rows_of(self._folder / each.file_name) for each in before)

    def _rows_of(self, path: Path) -> int:
        try:
            return int(pq.read_metadata(path).num_rows)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError):
            return 0  # a damaged file was read as if it were empty

    def _kept(self, rows: pa.Table, attempt: int) -> pa.Table:
        return self._trace.attempts(self._rank).drop_superseded(rows, attempt)


class NodeCursor(TableCursor):
    """Position in the samples of one node.

    Args:
        trace: the run.
        node: its name.
    """

    def __init__(self, trace: Trace, node: str) -> None:
        super().__init__(trace, "system", 0, ["time_ns", "device", "metric", "value"])
        self._folder = node_folder(trace.path, node)

    def _kept(self, rows: pa.Table, attempt: int) -> pa.Table:
        return rows
