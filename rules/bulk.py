"""Everything that was recorded whole, at once: a tensor over all its steps as one array."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.reader import Trace

_COLUMNS = ("step", "mode", "mode_step", "name", "dtype", "shape", "data")
_PIECE_ROWS = 1 << 20

Range = tuple[int | None, int | None]


class Series(NamedTuple):
    """A tensor over the steps at which it was saved whole.

    Attributes:
        steps: int64 [steps], ascending.
        values: [steps, *shape]; where shape or type changes, an array of objects, one array for each step.
    """

    steps: NDArray[np.int64]
    values: NDArray[Any]

    @classmethod
    def of(cls, by_step: dict[int, NDArray[Any]]) -> Series:
        """From arrays by step."""
        arrays = list(by_step.values())
        steps = np.fromiter(by_step, np.int64, len(by_step))
        if len({(array.dtype, array.shape) for array in arrays}) <= 1:
            return cls(steps, np.stack(arrays) if arrays else np.empty(0))
        values = np.empty(len(arrays), object)
        values[:] = arrays
        return cls(steps, values)

    def by_step(self) -> dict[int, NDArray[Any]]:
        """Arrays by step."""
        if self.values.ndim == 1 and self.values.dtype != object:  # a tensor without dimensions is an array too
            return {step: self.values[at, ...] for at, step in enumerate(self.steps.tolist())}
        return dict(zip(self.steps.tolist(), self.values, strict=True))


def whole_tensors(trace: Trace, rank: int, mode: ModeKeys, steps: Range = (None, None)) -> dict[str, Series]:
    """All whole tensors of a rank, by name.

    Args:
        trace: the run.
        rank: the rank.
        mode: steps are global ones in mode GLOBAL, where a training step goes before evaluations of the same number;
            else those counted within the mode, and of that mode only.
        steps: (first, end) global steps.
    """
    pieces = list(TableCursor(trace, "values", rank, _COLUMNS, piece=_PIECE_ROWS).read())
    if not pieces:
        return {}
    rows = pa.concat_tables(pieces).unify_dictionaries()
    order, numbers = _order(rows, mode, steps)
    # Names are contiguous in this order, so that the entries of one lie side by side.
    rows = rows.select(["name", "dtype", "shape", "data"])
    rows = rows.set_column(3, "data", rows["data"].cast(pa.large_binary()))  # in one array, however much it is
    batches = rows.take(pa.array(order)).combine_chunks().to_batches()
    return dict(_series(batches[0], numbers)) if batches else {}


def _order(rows: pa.Table, mode: ModeKeys, steps: Range) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that answer, by name and number, and their numbers."""
    modes = rows["mode"].combine_chunks()
    step = rows["step"].to_numpy()
    training = np.isin(modes.indices.to_numpy(), _codes(modes, ("TRAIN", "GLOBAL")))
    keep = np.ones(rows.num_rows, bool)
    if mode is not ModeKeys.GLOBAL:
        keep = np.isin(modes.indices.to_numpy(), _codes(modes, (mode.name,)))
    first, end = steps
    keep &= (step >= first) if first is not None else True
    keep &= (step < end) if end is not None else True
    number = step if mode is ModeKeys.GLOBAL else rows["mode_step"].to_numpy()
    codes = rows["name"].combine_chunks().indices.to_numpy()
    order = np.lexsort((training, number, codes))
    order = order[keep[order]]
    # Of rows of one name and number the last in this order answers.
    last = np.ones(len(order), bool)
    last[:-1] = (codes[order][1:] != codes[order][:-1]) | (number[order][1:] != number[order][:-1])
    order = order[last]
    return order, number[order]


def _codes(column: pa.DictionaryArray, spelled: tuple[str, ...]) -> list[int]:
    return [code for code, text in enumerate(column.dictionary.to_pylist()) if text in spelled]


def _series(rows: pa.RecordBatch, numbers: NDArray[np.int64]) -> Iterator[tuple[str, Series]]:
    names = rows["name"].indices.to_numpy()
    spelled = rows["name"].dictionary.to_pylist()
    _, offsets_buffer, content = rows["data"].buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[rows["data"].offset :]
    bounds = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
    for start, end in itertools.pairwise(bounds):
        if start == end:
            continue
        steps = numbers[start:end]
        dtypes, shapes = rows["dtype"][start:end], rows["shape"][start:end]
        dtype, shape = np.dtype(dtypes[0].as_py()), tuple(shapes[0].as_py())
        if _uniform(dtypes, shapes):
            flat = _entries(content, dtype, int(offsets[start]), int(offsets[end]))
            values = flat.reshape(end - start, *shape)
        else:
            values = np.empty(end - start, object)
            for at, (kind, sizes) in enumerate(zip(dtypes.to_pylist(), shapes.to_pylist(), strict=True)):
                first, last = int(offsets[start + at]), int(offsets[start + at + 1])
                values[at] = _entries(content, np.dtype(kind), first, last).reshape(sizes)
        yield spelled[names[start]], Series(steps, values)


def _entries(content: pa.Buffer | None, dtype: np.dtype[Any], start: int, end: int) -> NDArray[Any]:
    if start == end or content is None:
        return np.empty(0, dtype)
    found = np.frombuffer(content, dtype, (end - start) // dtype.itemsize, start)
    return found if found.flags.aligned else found.copy()


def _uniform(dtypes: pa.Array, shapes: pa.Array) -> bool:
    if len(dtypes.unique()) > 1:
        return False
    lengths = shapes.value_lengths().to_numpy(zero_copy_only=False)
    if (lengths != lengths[0]).any():
        return False
    sizes = shapes.flatten().to_numpy(zero_copy_only=False).reshape(len(shapes), -1)
    return bool((sizes == sizes[0]).all())
