"""Statistics of a whole tensor from those of its shards.

They are combined when they are read: a collective inside the training step would cost every rank a wait for the
slowest, and could hang where one rank leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stepwatch.probe.store.schema import STAT_COLUMNS

Matrix = NDArray[np.float64]


def combine(rows: Matrix, starts: NDArray[np.int64]) -> Matrix:
    """Statistics of the entries of several tensors together.

    Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979.

    Args:
        rows: float64 [n, len(STAT_COLUMNS)], those that belong together side by side.
        starts: int64 [groups], the first row of each group, beginning with 0 and increasing.

    Returns:
        float64 [groups, len(STAT_COLUMNS)].
    """
    numel, n_nan, n_inf, n_zero, low, high, mean, std, l1, l2, largest = rows.T
    finite = numel - n_nan - n_inf
    some = finite > 0
    mean, std = np.where(some, mean, 0), np.where(some, std, 0)
    sizes = np.diff([*starts, len(rows)])
    total = np.add.reduceat(finite, starts)
    at_least_one = np.maximum(total, 1)
    share = finite / np.repeat(at_least_one, sizes)
    whole_mean = np.add.reduceat(mean * share, starts)
    about = np.hypot(std, mean - np.repeat(whole_mean, sizes)) * np.sqrt(share)
    whole_std = np.hypot.reduceat(about, starts)
    columns = {
        **{name: np.add.reduceat(column, starts) for name, column in
           zip(("numel", "n_nan", "n_inf", "n_zero", "l1"), (numel, n_nan, n_inf, n_zero, l1), strict=True)},
        "min": np.fmin.reduceat(low, starts),
        "max": np.fmax.reduceat(high, starts),
        "mean": np.where(total > 0, whole_mean, np.nan),
        "std": np.where(total > 0, whole_std, np.nan),
        "l2": np.hypot.reduceat(l2, starts),
        "abs_max": np.fmax.reduceat(largest, starts),
    }  # fmt: skip
    return np.stack([columns[name] for name in STAT_COLUMNS], 1)


def joined(rows: pa.Table, shards: Mapping[str, Sequence[int]]) -> pa.Table:
    """Rows of ``stats`` of tensors that several ranks hold parts of, those of one step joined to one row.

    Args:
        rows: of sharded tensors.
        shards: the ranks that hold a part, by tensor.
    """
    parts = rows.to_pandas()
    parts = parts.loc[[rank in shards[name] for rank, name in zip(parts["rank"], parts["name"], strict=True)]]
    parts = parts.sort_values(["name", "mode", "step", "rank"], kind="stable", ignore_index=True)
    key = parts[["name", "mode", "step"]]
    starts = np.flatnonzero((key != key.shift()).any(axis=1))
    whole = parts.iloc[starts].copy()
    if len(starts):
        whole[list(STAT_COLUMNS)] = combine(parts[list(STAT_COLUMNS)].to_numpy(np.float64), starts)
        whole = whole[np.diff([*starts, len(parts)]) == [len(shards[name]) for name in whole["name"]]]
    return pa.Table.from_pandas(whole, schema=rows.schema, preserve_index=False)
