"""Statistics of tensors by torch's reductions, on any device, without waiting for it.

The entries of all tensors are laid out in one matrix, each tensor beginning a new row and its last row
padded with NaN. Every reduction is one call over all rows, so that the number of kernel launches does not
depend on the number of tensors; the rows of a tensor are merged on the host, when they have arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from stepwatch.probe.fetch import Fetch
from stepwatch.probe.store.schema import STAT_COLUMNS

Matrix = NDArray[np.float64]

_WIDTH = 4096
_CPU_ROWS = 32  # 1 MiB of doubles: they stay in the cache
_DEVICE_ROWS = 4096  # 128 MiB of doubles


def measure(tensors: Sequence[torch.Tensor]) -> Callable[[], Matrix]:
    """Start to compute all columns of real, strided tensors on one device.

    Returns a function that waits for them: float64 [tensors, len(STAT_COLUMNS)].
    """
    sizes = np.array([tensor.numel() for tensor in tensors], dtype=np.int64)
    if not sizes.any():
        return lambda: _merge(np.empty((0, 8)), sizes)
    device = tensors[0].device
    summaries = [_summarise(_rows(pieces, device)) for pieces in _batches(tensors, device)]
    fetch = Fetch(torch.cat(summaries))
    return lambda: _merge(fetch().numpy().astype(np.float64), sizes)


def _batches(tensors: Sequence[torch.Tensor], device: torch.device) -> Iterator[list[torch.Tensor]]:
    """Flat pieces in order, in batches of bounded size; all but the last of a tensor fill their rows."""
    limit = _CPU_ROWS if device.type == "cpu" else _DEVICE_ROWS
    batch: list[torch.Tensor] = []
    free = limit
    for tensor in tensors:
        flat = tensor.reshape(-1)
        at = 0
        while at < flat.numel():
            piece = flat[at : at + free * _WIDTH]
            at += piece.numel()
            free -= _row_count(piece.numel())
            batch.append(piece)
            if not free:
                yield batch
                batch, free = [], limit
    if batch:
        yield batch


def _row_count(numel: int) -> int:
    return -(-numel // _WIDTH)


def _rows(pieces: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """[rows, _WIDTH] of the widest floating type of the device."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    starts = np.cumsum([0, *(_row_count(piece.numel()) * _WIDTH for piece in pieces)])
    matrix = torch.full((int(starts[-1]),), float("nan"), dtype=wide, device=device)
    places = [matrix[start : start + piece.numel()] for start, piece in zip(starts, pieces, strict=False)]
    torch._foreach_copy_(places, pieces)
    return matrix.view(-1, _WIDTH)


def _summarise(rows: torch.Tensor) -> torch.Tensor:
    """Of each row [finite, n_nan with the padding, n_zero, min, max, mean, spread, l1].

    ``mean``, ``spread`` (sum of squares about the mean) and ``l1`` are of the entries divided by the largest
    magnitude of the row, so that no square leaves the range of the type.
    """
    infinity = float("inf")
    clean = torch.nan_to_num(rows, 0, 0, 0)
    usable = rows == clean
    low = torch.nan_to_num(rows, infinity, infinity, infinity).amin(1)
    high = torch.nan_to_num(rows, -infinity, -infinity, -infinity).amax(1)
    largest = torch.maximum(-low, high)
    scaled = clean.div_(torch.where(largest > 0, largest, 1)[:, None])
    finite = usable.sum(1)
    at_least_one = finite.clamp(min=1)
    mean = scaled.sum(1) / at_least_one
    about_mean = torch.where(usable, scaled - mean[:, None], 0)
    rest = about_mean.sum(1)  # what rounding left in the mean
    columns = [
        finite,
        (rows != rows).sum(1),
        (rows == 0).sum(1),
        low,
        high,
        mean + rest / at_least_one,
        about_mean.square_().sum(1) - rest.square() / at_least_one,
        scaled.abs_().sum(1),
    ]
    return torch.stack([column.to(rows.dtype) for column in columns], 1)


def _merge(rows: Matrix, sizes: NDArray[np.int64]) -> Matrix:
    """Columns of the tensors from summaries of their rows (as in ``_kernels.c``)."""
    counts = -(-sizes // _WIDTH)
    filled = counts > 0
    matrix = np.full((len(sizes), len(STAT_COLUMNS)), np.nan)
    matrix[:, 0] = sizes
    matrix[:, [1, 2, 3, 8, 9]] = 0
    if not filled.any():
        return matrix
    starts = (np.cumsum(counts) - counts)[filled]
    repeats = counts[filled]
    finite, n_nan, n_zero, low, high, mean, spread, l1 = rows.T
    n = np.add.reduceat(finite, starts)
    infinite = np.add.reduceat(_WIDTH - finite - n_nan, starts)
    low = np.minimum.reduceat(low, starts)
    high = np.maximum.reduceat(high, starts)
    row_largest = np.maximum(0, np.maximum(-rows[:, 3], rows[:, 4]))
    largest = np.maximum.reduceat(row_largest, starts)
    unit = row_largest / np.repeat(np.where(largest > 0, largest, 1), repeats)
    at_least_one = np.maximum(n, 1)
    centre = np.add.reduceat(finite * mean * unit, starts) / at_least_one
    between = mean * unit - np.repeat(centre, repeats)
    squares = np.add.reduceat(spread * unit**2 + finite * between**2, starts)
    centre = np.where(low == high, np.sign(low), centre)
    squares = np.where(low == high, 0, squares)
    columns = [
        sizes[filled] - n - infinite,
        infinite,
        np.add.reduceat(n_zero, starts),
        low,
        high,
        centre * largest,
        np.sqrt(squares / at_least_one) * largest,
        np.add.reduceat(l1 * unit, starts) * largest,
        np.sqrt(squares + n * centre**2) * largest,
        largest,
    ]
    found = np.stack(columns, 1)
    found[np.ix_(n == 0, [3, 4, 5, 6, 9])] = np.nan
    matrix[filled, 1:] = found
    return matrix
