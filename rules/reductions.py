"""Reductions of tensors, from their recorded statistics, with the numbers that NumPy would give.

Statistics are over finite entries with the others counted; NumPy's reductions are over all entries, so that one
NaN makes them NaN. These follow NumPy: standard deviation and variance are of the population, ``l1`` and ``l2``
of the flattened tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

REDUCTIONS: tuple[str, ...] = ("min", "max", "mean", "std", "variance", "sum", "prod", "l1", "l2")
"""Names of reductions; each also exists of magnitudes."""


def derived(row: Mapping[str, float], name: str, *, of_magnitudes: bool) -> float | None:
    """A reduction from recorded statistics, or None where the statistics do not tell.

    Args:
        row: columns of the ``stats`` table.
        name: one of :data:`REDUCTIONS`.
        of_magnitudes: of the entries' absolute values.
    """
    if name in ("l1", "l2"):
        return _with_infinities(row, row[name])
    if name == "prod":
        return None if row["n_nan"] or row["n_inf"] or not row["n_zero"] else 0.0
    return _of_magnitudes(row, name) if of_magnitudes else _of_entries(row, name)


def computed(array: NDArray[Any], name: str, *, of_magnitudes: bool) -> float | None:
    """A reduction of a whole tensor that is not empty, or its ``median``; None where there is no such reduction."""
    if name not in (*REDUCTIONS, "median"):
        return None
    entries = array.astype(np.float64)
    if of_magnitudes:
        entries = np.abs(entries)
    with np.errstate(all="ignore"):
        if name in ("l1", "l2"):
            return float(np.linalg.norm(entries.ravel(), 1 if name == "l1" else 2))
        if name == "median":
            return float(np.median(entries))
        return float(getattr(entries, "var" if name == "variance" else name)())


def _of_entries(row: Mapping[str, float], name: str) -> float | None:
    if row["n_nan"]:
        return math.nan
    if row["n_inf"]:
        # Of which sign they are is not recorded; only the spread is undefined for sure.
        return math.nan if name in ("std", "variance") else None
    if name == "variance":
        return row["std"] * row["std"]
    if name == "sum":
        return row["mean"] * row["numel"] if row["numel"] else 0.0
    return row[name]


def _of_magnitudes(row: Mapping[str, float], name: str) -> float | None:
    if row["n_nan"]:
        return math.nan
    if name == "min":
        return _least_magnitude(row)
    if name in ("std", "variance"):
        if row["n_inf"]:
            return math.nan
        if not row["numel"]:
            return math.nan
        mean, root_mean_square = row["l1"] / row["numel"], row["l2"] / math.sqrt(row["numel"])
        variance = max((root_mean_square - mean) * (root_mean_square + mean), 0.0)
        return variance if name == "variance" else math.sqrt(variance)
    if name == "mean":
        return _with_infinities(row, row["l1"] / row["numel"] if row["numel"] else math.nan)
    return _with_infinities(row, row["l1" if name == "sum" else "abs_max"])


def _least_magnitude(row: Mapping[str, float]) -> float | None:
    if row["n_zero"]:
        return 0.0
    if row["numel"] and row["n_inf"] == row["numel"]:
        return math.inf
    if row["min"] > 0:
        return row["min"]
    return -row["max"] if row["max"] < 0 else None


def _with_infinities(row: Mapping[str, float], finite: float) -> float:
    if row["n_nan"]:
        return math.nan
    return math.inf if row["n_inf"] else finite
