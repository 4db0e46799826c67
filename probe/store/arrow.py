"""Arrow's columns as NumPy's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def as_array(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """A column of numbers, seen where it lies; one with nulls is copied, with NaN in their places.

    Arrow's own ``to_numpy`` imports pandas when it is first called, a quarter of a second for nothing.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    found: NDArray[Any] = array.to_numpy(zero_copy_only=False) if array.null_count else np.from_dlpack(array)
    return found
