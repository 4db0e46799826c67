"""Fewer points of a long series, with its extremes kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def keep_extremes(values: NDArray[np.float64], size: int) -> NDArray[np.intp]:
    """Indices of at most ``size`` points, ascending: the ends, and of each stretch its lowest and highest.

    A spike of one step in a million is still there. Points that are not finite count as highest.

    Args:
        values: float64 [n].
        size: at least 4.
    """
    count = len(values)
    if count <= size:
        return np.arange(count)
    width = -(-count // ((size - 2) // 2))
    starts = np.arange(0, count, width)
    comparable = np.where(np.isfinite(values), values, np.inf)
    # The last stretch is filled up with its first value, which is neither its only lowest nor its only highest.
    filled = np.concatenate([comparable, np.full(len(starts) * width - count, comparable[starts[-1]])])
    rows = filled.reshape(-1, width)
    return np.unique(np.concatenate([[0, count - 1], starts + rows.argmin(axis=1), starts + rows.argmax(axis=1)]))


def stretches(columns: int, size: int) -> NDArray[np.intp]:
    """Where each of at most ``size`` stretches of about equal length begins."""
    return np.unique(np.linspace(0, columns, min(size, columns), endpoint=False).astype(np.intp))


def evenly(count: int, size: int) -> NDArray[np.intp]:
    """At most ``size`` of ``count`` places, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(size, count)).round().astype(np.intp))


def bucket_max(matrix: NDArray[np.float64], size: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Largest value of each of at most ``size`` stretches of columns, and the first column of each.

    Args:
        matrix: float64 [rows, columns]; NaN where nothing was recorded, ignored unless a stretch has no other.

    Returns:
        float64 [rows, stretches] and index [stretches].
    """
    columns = matrix.shape[1]
    starts = stretches(columns, size)
    if len(starts) == columns:
        return matrix, starts
    filled = np.where(np.isnan(matrix), -np.inf, matrix)
    largest = np.maximum.reduceat(filled, starts, axis=1)
    return np.where(np.isneginf(largest), np.nan, largest), starts
