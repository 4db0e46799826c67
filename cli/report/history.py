"""Statistics of all tensors over the saved training steps, in as many columns as are shown; read in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stepwatch.cli.report.downsample import stretches
from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import TensorInfo

MAX_COLUMNS = 120

_READ = ("numel", "n_nan", "n_inf", "min", "max", "mean", "std", "l2")


@dataclass(frozen=True)
class History:
    """What the tensors of a rank were like, each column a stretch of saved training steps.

    Attributes:
        tensors: those that have statistics, in the order of their modules.
        left, right: steps at which each column begins and ends, [columns].
        rms: largest root mean square of the finite entries, [tensors, columns]; NaN where nothing was recorded.
        low, high: smallest and largest entry, likewise.
        mean, std: averages over the stretch of the mean and of the standard deviation, likewise.
        bad: whether an entry was not finite, [tensors, columns].
    """

    tensors: list[TensorInfo]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    rms: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    bad: NDArray[np.bool_]

    def rows_of(self, collection: str) -> list[int]:
        """Places of the tensors of a collection that have two dimensions or more."""
        return [
            place
            for place, tensor in enumerate(self.tensors)
            if collection in tensor.collections and len(tensor.shape) >= 2
        ]


def tensor_history(trace: Trace, rank: int) -> History | None:
    """Histories of all tensors of a rank, or None where no statistics were recorded."""
    known = sorted(trace.tensors().values(), key=lambda tensor: tensor.order)
    if not known:
        return None
    steps = _saved_steps(trace, rank)
    if not len(steps):
        return None
    first = stretches(len(steps), MAX_COLUMNS)
    left = steps[first].astype(np.float64)
    shape = len(known), len(first)
    rms, high = np.full(shape, -np.inf), np.full(shape, -np.inf)
    low = np.full(shape, np.inf)
    mean, std, count = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    bad = np.zeros(shape, dtype=bool)
    names = pa.array([tensor.name for tensor in known])
    for piece in _rows(trace, rank, _READ):
        cells, table = _cells(piece, names, left)
        value = {name: table[name].to_numpy() for name in _READ}
        with np.errstate(invalid="ignore"):
            size = value["l2"] / np.sqrt(np.maximum(value["numel"], 1))
        size[~np.isfinite(size)] = 0.0
        there = np.isfinite(value["mean"])
        np.maximum.at(rms.reshape(-1), cells, size)
        np.fmin.at(low.reshape(-1), cells, value["min"])
        np.fmax.at(high.reshape(-1), cells, value["max"])
        mean.reshape(-1)[:] += np.bincount(cells[there], value["mean"][there], mean.size)
        std.reshape(-1)[:] += np.bincount(cells[there], value["std"][there], mean.size)
        count.reshape(-1)[:] += np.bincount(cells[there], minlength=mean.size)
        bad.reshape(-1)[cells[value["n_nan"] + value["n_inf"] > 0]] = True
    seen = np.flatnonzero(~np.isneginf(rms).all(axis=1))
    if not len(seen):
        return None
    with np.errstate(invalid="ignore"):
        rms, low, high = (np.where(np.isinf(each), np.nan, each)[seen] for each in (rms, low, high))
        mean, std = (np.where(count > 0, each / np.maximum(count, 1), np.nan)[seen] for each in (mean, std))
    last = float(max(np.median(np.diff(left)), 1)) if len(left) > 1 else 1.0
    right = np.append(left[1:], left[-1] + last)
    return History([known[place] for place in seen], left, right, rms, low, high, mean, std, bad[seen])


def _saved_steps(trace: Trace, rank: int) -> NDArray[np.int64]:
    """Training steps with statistics, ascending; of an imported run, which has no table of them, by reading all."""
    rows = trace.table("steps", columns=["step", "saved"], ranks=[rank], modes=["TRAIN", "GLOBAL"])
    steps = np.unique(rows.filter(pc.fill_null(rows["saved"], False))["step"].to_numpy())
    if not len(steps):
        for piece in _rows(trace, rank, ()):
            steps = np.union1d(steps, piece["step"].to_numpy())
    return steps.astype(np.int64)


def _rows(trace: Trace, rank: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    training = pa.array(["TRAIN", "GLOBAL"])
    for piece in TableCursor(trace, "stats", rank, ["step", "mode", "name", *columns]).read():
        yield piece.filter(pc.is_in(piece["mode"], training))


def _cells(piece: pa.Table, names: pa.Array, left: NDArray[np.float64]) -> tuple[NDArray[np.int64], pa.Table]:
    """Where each row belongs in a matrix of tensors by columns, laid out flat, and the rows that belong anywhere."""
    tensor = pc.index_in(piece["name"], names)
    piece = piece.filter(pc.is_valid(tensor))
    column = np.clip(np.searchsorted(left, piece["step"].to_numpy(), side="right") - 1, 0, len(left) - 1)
    return tensor.drop_null().to_numpy().astype(np.int64) * len(left) + column, piece
