"""Everything that was recorded whole, at once: a tensor over all its steps as one array."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.store.arrow import as_array
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
    """All whole tensors of a rank that have entries, by name.

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
    data = rows["data"].cast(pa.large_binary()).combine_chunks()  # in one array, however much it is
    rows = rows.set_column(rows.schema.get_field_index("data"), "data", data)
    order, numbers = _order(rows, mode, steps)
    return dict(_series(rows, order, numbers))


def _order(rows: pa.Table, mode: ModeKeys, steps: Range) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that answer, by name and number, and their numbers."""
    modes = rows["mode"].combine_chunks()
    step = as_array(rows["step"])
    training = np.isin(as_array(modes.indices), _codes(modes, ("TRAIN", "GLOBAL")))
    keep = _bounds(rows["data"].chunk(0))[1] > 0  # what has no entries has no statistics either
    if mode is not ModeKeys.GLOBAL:
        keep &= np.isin(as_array(modes.indices), _codes(modes, (mode.name,)))
    first, end = steps
    keep &= (step >= first) if first is not None else True
    keep &= (step < end) if end is not None else True
    number = step if mode is ModeKeys.GLOBAL else as_array(rows["mode_step"])
    codes = as_array(rows["name"].combine_chunks().indices)
    order = np.lexsort((training, number, codes))
    order = order[keep[order]]
    # Of rows of one name and number the last in this order answers.
    last = np.ones(len(order), bool)
    last[:-1] = (codes[order][1:] != codes[order][:-1]) | (number[order][1:] != number[order][:-1])
    order = order[last]
    return order, number[order]


def _codes(column: pa.DictionaryArray, spelled: tuple[str, ...]) -> list[int]:
    return [code for code, text in enumerate(column.dictionary.to_pylist()) if text in spelled]


def _series(rows: pa.Table, order: NDArray[np.int64], numbers: NDArray[np.int64]) -> Iterator[tuple[str, Series]]:
    """Each tensor, of rows in an order by name and number."""
    names, dtypes = (rows[column].combine_chunks() for column in ("name", "dtype"))
    codes, kinds = as_array(names.indices)[order], as_array(dtypes.indices)[order]
    spelled, types = names.dictionary.to_pylist(), [np.dtype(each) for each in dtypes.dictionary.to_pylist()]
    data = rows["data"].chunk(0)
    content = data.buffers()[2]
    starts, sizes = _bounds(data)
    shapes = rows["shape"].combine_chunks()
    first, dimensions = _bounds(shapes)
    every = as_array(shapes.values)
    starts, sizes, first, dimensions = (each[order] for each in (starts, sizes, first, dimensions))
    bounds = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), len(order)]
    for start, end in itertools.pairwise(bounds):
        if start == end:
            continue
        of_it = slice(start, end)
        entries = _Entries(content, starts[of_it], sizes[of_it])
        if _same(kinds[of_it]) and _same(dimensions[of_it]):
            by_row = every[first[of_it, None] + np.arange(dimensions[start])]
            if (by_row == by_row[0]).all():
                yield spelled[codes[start]], Series(numbers[of_it], entries.stacked(types[kinds[start]], by_row[0]))
                continue
        ragged = np.empty(end - start, object)
        for at in range(end - start):
            shape = every[first[start + at] : first[start + at] + dimensions[start + at]]
            ragged[at] = entries.one(at, types[kinds[start + at]], shape)
        yield spelled[codes[start]], Series(numbers[of_it], ragged)


class _Entries:
    """Where the entries of a tensor lie in what was read, step by step, in bytes."""

    def __init__(self, content: pa.Buffer, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        self._content, self._starts, self._sizes = content, starts, sizes

    def one(self, at: int, dtype: np.dtype[Any], shape: NDArray[np.int64]) -> NDArray[Any]:
        """The array of one step."""
        count, start = int(self._sizes[at]) // dtype.itemsize, int(self._starts[at])
        found = np.frombuffer(self._content, dtype, count, start).reshape(shape)
        return found if found.flags.aligned else found.copy()

    def stacked(self, dtype: np.dtype[Any], shape: NDArray[np.int64]) -> NDArray[Any]:
        """Arrays of the same shape as one: where they lie at equal distances, as they do, a view of all of them."""
        whole = (len(self._starts), *shape.tolist())
        distances = np.diff(self._starts)
        if _same(distances):
            stride = int(distances[0]) if len(distances) else int(self._sizes[0])
            inner = np.empty(whole[1:], dtype).strides
            if stride > 0:
                found: NDArray[Any] = np.ndarray(whole, dtype, self._content, int(self._starts[0]), (stride, *inner))
                return found if found.flags.aligned else found.copy()
        return np.stack([self.one(at, dtype, shape) for at in range(len(self._starts))])


def _bounds(lists: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each entry of a column of texts or lists begins, and its length."""
    kind = np.int32 if pa.types.is_list(lists.type) else np.int64
    offsets = np.frombuffer(lists.buffers()[1], kind)[lists.offset : lists.offset + len(lists) + 1].astype(np.int64)
    return offsets[:-1], np.diff(offsets)


def _same(values: NDArray[Any]) -> bool:
    return bool((values == values[:1]).all())
