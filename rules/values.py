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
        self._cursor = TableCursor(trace, "values", rank, _COLUMNS)
        self._places: dict[str, dict[Key, tuple[_Piece, int]]] = {}

    @classmethod
    def fit(cls, trace: Trace, rank: int) -> bool:
        """Whether all that is there by now may be held in memory."""
        folder = rank_folder(trace.path, "values", rank)
        return sum((folder / part.file_name).stat().st_size for part in list_parts(folder)) <= MAX_BYTES

    def refresh(self) -> None:
        """Take what was recorded meanwhile."""
        for piece in (_Piece(batch) for rows in self._cursor.read() for batch in rows.to_batches()):
            for index, (name, key) in enumerate(piece.keys()):
                self._places.setdefault(name, {})[key] = (piece, index)

    def get(self, name: str, key: Key) -> NDArray[Any] | None:
        """The tensor at a (global step, mode, step of the mode), or None."""
        place = self._places.get(name, {}).get(key)
        return None if place is None else place[0].array(place[1])


class _Piece:
    """Rows of the table, of which arrays are made without copying."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._rows = rows
        data = rows["data"]
        _, offsets, content = data.buffers()
        self._offsets = np.frombuffer(offsets, np.int32)[data.offset : data.offset + len(data) + 1].tolist()
        self._content = content
        self._dtypes = [np.dtype(name) for name in self._rows["dtype"].to_pylist()]
        self._shapes = self._rows["shape"].to_pylist()

    def keys(self) -> Iterator[tuple[str, Key]]:
        """Name and key of each row."""
        columns = (self._rows[column].to_pylist() for column in ("step", "mode", "mode_step"))
        return zip(self._rows["name"].to_pylist(), zip(*columns, strict=True), strict=True)

    def array(self, index: int) -> NDArray[Any]:
        """The tensor of a row."""
        start, end = self._offsets[index], self._offsets[index + 1]
        dtype = self._dtypes[index]
        if start == end:
            return np.empty(self._shapes[index], dtype)
        flat = np.frombuffer(self._content, dtype, (end - start) // dtype.itemsize, start)
        return flat.reshape(self._shapes[index])
