"""Statistics of many CUDA tensors in one pass over their memory: two launches, however many tensors there are.

The first kernel reads every entry once: a program takes one row of ``ROW`` entries of one tensor into registers and
leaves its summary. The second merges the rows of each tensor. Where the rows lie depends on the sizes of the tensors
only, and stays on the device; of a step the tensors' addresses go there, and ten numbers per tensor come back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from stepwatch.probe.fetch import Fetch
from stepwatch.probe.store.schema import STAT_COLUMNS

ROW = tl.constexpr(4096)
_MERGED = tl.constexpr(1024)
_SUMMARY = tl.constexpr(9)
_RESULT = tl.constexpr(8)

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.int16}


@triton.jit
def _scale_and_reach(low, high, middle):
    """A factor by which no difference overflows, and the largest distance from the middle, in that scale."""
    scale = tl.where(tl.maximum(-low, high) > 1e37, 0.5, 1.0)
    reach = tl.maximum(high * scale - middle * scale, middle * scale - low * scale)
    return scale, tl.where(low > high, 0.0, reach)


@triton.jit
def _summarise_rows(addresses, tensor_of_row, first_rows, sizes, summaries, TYPE: tl.constexpr):
    """Of one row: finite, n_nan, n_zero, min, max, middle, (mean - middle) / reach, spread / reach², l1 / largest.

    The middle is the mean as far as single precision tells. So no square leaves its range, and a mean far from zero
    takes no digits off the spread.
    """
    row = tl.program_id(0).to(tl.int64)
    tensor = tl.load(tensor_of_row + row)
    at = (row - tl.load(first_rows + tensor)) * ROW + tl.arange(0, ROW)
    inside = at < tl.load(sizes + tensor)
    address = tl.load(addresses + tensor).to(tl.pointer_type(TYPE))
    if TYPE == tl.int16:  # bfloat16: the upper half of a float32  # noqa: SIM300
        x = (tl.load(address + at, mask=inside, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        x = tl.load(address + at, mask=inside, other=0).to(tl.float32)
    magnitude = tl.abs(x)
    usable = inside & (magnitude < float("inf"))  # false for NaN
    n = tl.sum(usable.to(tl.float32), 0)
    low = tl.min(tl.where(usable, x, float("inf")), 0)
    high = tl.max(tl.where(usable, x, float("-inf")), 0)
    at_least_one = tl.maximum(n, 1.0)
    largest = tl.max(tl.where(usable, magnitude, 0.0), 0)
    scaled = tl.where(usable, x / tl.where(largest > 0, largest, 1.0), 0.0)
    middle = tl.sum(scaled, 0) / at_least_one * largest
    scale, reach = _scale_and_reach(low, high, middle)
    about = tl.where(usable, (x * scale - middle * scale) / tl.where(reach > 0, reach, 1.0), 0.0)
    rest = tl.sum(about, 0) / at_least_one
    base = summaries + row * _SUMMARY
    tl.store(base, n)
    tl.store(base + 1, tl.sum((inside & (x != x)).to(tl.float32), 0))
    tl.store(base + 2, tl.sum((inside & (x == 0)).to(tl.float32), 0))
    tl.store(base + 3, low)
    tl.store(base + 4, high)
    tl.store(base + 5, middle)
    tl.store(base + 6, rest)
    tl.store(base + 7, tl.maximum(tl.sum(about * about, 0) - rest * rest * n, 0.0))
    tl.store(base + 8, tl.sum(tl.abs(scaled), 0))


@triton.jit
def _merge_rows(summaries, first_rows, results):
    """Of one tensor, in double precision: n_nan, n_zero, finite, min, max, mean, sum of squares about it, l1."""
    tensor = tl.program_id(0)
    first, end = tl.load(first_rows + tensor), tl.load(first_rows + tensor + 1)
    n = tl.zeros([_MERGED], tl.float64)
    n_nan = tl.zeros([_MERGED], tl.float64)
    n_zero = tl.zeros([_MERGED], tl.float64)
    total = tl.zeros([_MERGED], tl.float64)
    l1 = tl.zeros([_MERGED], tl.float64)
    least = tl.full([_MERGED], float("inf"), tl.float32)
    most = tl.full([_MERGED], float("-inf"), tl.float32)
    for start in range(first, end, _MERGED):
        at = start + tl.arange(0, _MERGED)
        inside = at < end
        base = summaries + at * _SUMMARY
        low = tl.load(base + 3, mask=inside, other=float("inf"))
        high = tl.load(base + 4, mask=inside, other=float("-inf"))
        finite = tl.load(base, mask=inside, other=0.0).to(tl.float64)
        middle = tl.load(base + 5, mask=inside, other=0.0)
        scale, reach = _scale_and_reach(low, high, middle)
        unit = reach.to(tl.float64) / scale.to(tl.float64)
        mean = middle.to(tl.float64) + unit * tl.load(base + 6, mask=inside, other=0.0).to(tl.float64)
        largest = tl.where(low > high, 0.0, tl.maximum(-low, high))
        least = tl.minimum(least, low)
        most = tl.maximum(most, high)
        n += finite
        n_nan += tl.load(base + 1, mask=inside, other=0.0).to(tl.float64)
        n_zero += tl.load(base + 2, mask=inside, other=0.0).to(tl.float64)
        total += finite * mean
        l1 += tl.load(base + 8, mask=inside, other=0.0).to(tl.float64) * largest.to(tl.float64)
    count = tl.sum(n, 0)
    whole_mean = tl.sum(total, 0) / tl.maximum(count, 1.0)
    squares = tl.zeros([_MERGED], tl.float64)
    for start in range(first, end, _MERGED):
        at = start + tl.arange(0, _MERGED)
        inside = at < end
        base = summaries + at * _SUMMARY
        low = tl.load(base + 3, mask=inside, other=float("inf"))
        high = tl.load(base + 4, mask=inside, other=float("-inf"))
        middle = tl.load(base + 5, mask=inside, other=0.0)
        scale, reach = _scale_and_reach(low, high, middle)
        unit = reach.to(tl.float64) / scale.to(tl.float64)
        mean = middle.to(tl.float64) + unit * tl.load(base + 6, mask=inside, other=0.0).to(tl.float64)
        spread = tl.load(base + 7, mask=inside, other=0.0).to(tl.float64) * unit * unit
        finite = tl.load(base, mask=inside, other=0.0).to(tl.float64)
        squares += spread + finite * (mean - whole_mean) * (mean - whole_mean)
    out = results + tensor.to(tl.int64) * _RESULT
    tl.store(out, tl.sum(n_nan, 0))
    tl.store(out + 1, tl.sum(n_zero, 0))
    tl.store(out + 2, count)
    tl.store(out + 3, tl.min(least, 0).to(tl.float64))
    tl.store(out + 4, tl.max(most, 0).to(tl.float64))
    tl.store(out + 5, whole_mean)
    tl.store(out + 6, tl.sum(squares, 0))
    tl.store(out + 7, tl.sum(l1, 0))


@dataclass(frozen=True)
class _Layout:
    """Where the rows of tensors of these sizes lie; on the device."""

    tensor_of_row: torch.Tensor
    first_rows: torch.Tensor
    sizes: torch.Tensor
    rows: int


def readable(tensor: torch.Tensor) -> bool:
    """Whether the kernels read a tensor where it lies."""
    return tensor.dtype in _TYPES and tensor.is_contiguous()


def measure(tensors: Sequence[torch.Tensor]) -> Callable[[], NDArray[np.float64]]:
    """Start to compute all columns of :func:`readable` tensors on one device, without waiting for it.

    Returns a function that waits for them: float64 [tensors, len(STAT_COLUMNS)].
    """
    by_type: dict[torch.dtype, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor.numel():
            by_type.setdefault(tensor.dtype, []).append(index)
    fetches = [(rows, _start([tensors[row] for row in rows], kind)) for kind, rows in by_type.items()]
    sizes = np.array([tensor.numel() for tensor in tensors], dtype=np.float64)

    def result() -> NDArray[np.float64]:
        matrix = np.full((len(sizes), len(STAT_COLUMNS)), np.nan)
        matrix[:, 0] = sizes
        matrix[:, [1, 2, 3, 8, 9]] = 0
        for rows, fetch in fetches:
            matrix[rows, 1:] = _columns(fetch().numpy(), sizes[rows])
        return matrix

    return result


def _start(tensors: list[torch.Tensor], kind: torch.dtype) -> Fetch:
    device = tensors[0].device
    layout = _layout(device, tuple(tensor.numel() for tensor in tensors))
    addresses = _to(device, torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64))
    summaries = torch.empty((layout.rows, 9), dtype=torch.float32, device=device)
    results = torch.empty((len(tensors), 8), dtype=torch.float64, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        _summarise_rows[(layout.rows,)](
            addresses, layout.tensor_of_row, layout.first_rows, layout.sizes, summaries, TYPE=_TYPES[kind], num_warps=8
        )
        _merge_rows[(len(tensors),)](summaries, layout.first_rows, results)
    return Fetch(results)


@lru_cache(maxsize=256)
def _layout(device: torch.device, sizes: tuple[int, ...]) -> _Layout:
    counts = -(-np.array(sizes, dtype=np.int64) // ROW.value)
    first_rows = np.concatenate([[0], np.cumsum(counts)])
    tensor_of_row = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
    return _Layout(
        _to(device, torch.from_numpy(tensor_of_row)),
        _to(device, torch.from_numpy(first_rows)),
        _to(device, torch.tensor(sizes, dtype=torch.int64)),
        int(first_rows[-1]),
    )


def _to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the device, for which nothing waits."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _columns(merged: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    n_nan, n_zero, n, low, high, mean, squares, l1 = merged.T
    mean = np.where(low == high, low, mean)
    squares = np.where(low == high, 0, squares)
    std = np.sqrt(squares / np.maximum(n, 1))
    l2 = np.sqrt(squares + n * mean**2)
    found = np.stack([n_nan, sizes - n - n_nan, n_zero, low, high, mean, std, l1, l2, np.maximum(-low, high)], 1)
    found[np.ix_(n == 0, [3, 4, 5, 6, 9])] = np.nan
    found[np.ix_(n == 0, [7, 8])] = 0
    return found
