"""Whole tensors of one rank in memory, each read once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.layout import list_parts, rank_folder
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.tables import ROW_GROUP_ROWS

MAX_BYTES = 256 << 20

_COLUMNS = ("step", "mode", "mode_step", "name", "dtype", "shape", "data")

Key = tuple[int, str, int]


class WholeTensors:
    """Whole tensors that a rank has recorded so far, by name and step; arrays lie in the memory of what was read.

    Args:
        trace: the run.
        rank: the rank.
    """

    def __init__(self, trace: Trace, rank: int) -> None:
        self._cursor = TableCursor(trace, "values", rank, _COLUMNS, piece=ROW_GROUP_ROWS)
        self._pieces: list[_Piece] = []
        self._places: dict[str, dict[Key, tuple[_Piece, int]]] = {}

    @classmethod
    def fit(cls, trace: Trace, rank: int) -> bool:
        """Whether all that is there by now may be held in memory."""
        folder = rank_folder(trace.path, "values", rank)
        return sum((folder / part.file_name).stat().st_size for part in list_parts(folder)) <= MAX_BYTES

    def refresh(self) -> None:
        """Take what was recorded meanwhile."""
        fresh = [_Piece(batch) for rows in self._cursor.read() for batch in rows.to_batches()]
        if fresh:
            self._pieces += fresh
            self._places.clear()

    def get(self, name: str, key: Key) -> NDArray[Any] | None:
        """The tensor at a (global step, mode, step of the mode), or None."""
        places = self._places.get(name)
        if places is None:
            found = ((key, (piece, row)) for piece in self._pieces for row, key in piece.rows_of(name))
            places = self._places[name] = dict(found)
        place = places.get(key)
        return None if place is None else place[0].array(place[1])


class _Piece:
    """Rows of the table, of which arrays are made without copying."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        _, offsets, self._content = rows["data"].buffers()
        self._offsets = np.frombuffer(offsets, np.int32)[rows["data"].offset :].tolist()
        self._steps, self._modes, self._mode_steps = (rows[name].to_pylist() for name in ("step", "mode", "mode_step"))
        self._dtypes = rows["dtype"].to_pylist()
        self._shapes = rows["shape"].to_pylist()
        names = rows["name"]
        codes = names.indices.to_numpy(zero_copy_only=False)
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(names.dictionary) + 1))
        self._rows = {
            name: order[start:end]
            for name, start, end in zip(names.dictionary.to_pylist(), bounds[:-1], bounds[1:], strict=True)
        }

    def rows_of(self, name: str) -> Iterator[tuple[int, Key]]:
        """Rows that hold a tensor, with their keys, in recorded order."""
        for row in self._rows.get(name, np.empty(0, np.intp)).tolist():
            yield row, (self._steps[row], self._modes[row], self._mode_steps[row])

    def array(self, row: int) -> NDArray[Any]:
        """The tensor of a row."""
        start, end = self._offsets[row], self._offsets[row + 1]
        dtype = np.dtype(self._dtypes[row])
        flat = (
            np.frombuffer(self._content, dtype, (end - start) // dtype.itemsize, start) if start < end else np.empty(0)
        )
        return flat.astype(dtype, copy=False).reshape(self._shapes[row])
