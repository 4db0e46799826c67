"""Arrow's columns as NumPy's arrays, and files of them, without importing pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray


def as_array(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """A column of numbers, seen where it lies; one with nulls is copied, with NaN in their places.

    Arrow's own ``to_numpy`` imports pandas when it is first called, a quarter of a second for nothing.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    found: NDArray[Any] = array.to_numpy(zero_copy_only=False) if array.null_count else np.from_dlpack(array)
    return found


def rows_of_file(path: Path, columns: list[str] | None, condition: pc.Expression | None) -> pa.Table:
    """A file's rows, all or those that meet a condition.

    Without one no more of Arrow is imported than is there, and no pandas, which takes half a second.

    Raises:
        ValueError: the file lacks a column.
    """
    if condition is not None:
        return pq.read_table(path, columns=columns, filters=condition, partitioning=None)
    with pq.ParquetFile(path) as file:
        rows = file.read(columns=columns)
    if lacking := set(columns or ()) - set(rows.column_names):
        raise ValueError(f"it has no column {', '.join(sorted(lacking))}")
    return rows if columns is None else rows.select(columns)
