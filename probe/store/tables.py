"""Arrow tables of finished records, and how they are encoded in Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.schema import COUNT_COLUMNS, STAT_COLUMNS, TABLES, TIMING_COLUMNS

ROW_GROUP_ROWS = 128 * 1024

_TEXT_COLUMNS = ("name", "mode", "quantity", "dtype", "device", "metric")


class TableBuilder:
    """Turns records of one attempt into tables, without work per row for the statistics."""

    def __init__(self, attempt: int) -> None:
        self._attempt = attempt
        self._codes: dict[tuple[str, ...], NDArray[np.int32]] = {}
        self._dictionary: dict[str, int] = {}

    def build(self, records: Sequence[StepRecord]) -> dict[str, pa.Table]:
        """Tables that have rows, the committing ``steps`` last."""
        tables = {
            "stats": self._stats([r for r in records if r.stats is not None and len(r.stats)]),
            "derived": self._derived(records),
            "values": self._values(records),
            "scalars": self._scalars(records),
            "steps": self._steps([record for record in records if not record.late]),
        }
        return {name: table for name, table in tables.items() if table is not None and table.num_rows}

    def _keys(self, records: Sequence[StepRecord], counts: Sequence[int]) -> list[pa.Array]:
        def spread(values: Sequence[int], dtype: type) -> pa.Array:
            return pa.array(np.repeat(np.array(values, dtype=dtype), counts))

        modes = sorted({record.mode for record in records})
        mode_codes = np.repeat(np.array([modes.index(r.mode) for r in records], dtype=np.int32), counts)
        return [
            spread([self._attempt] * len(records), np.int32),
            spread([record.step for record in records], np.int64),
            pa.DictionaryArray.from_arrays(mode_codes, pa.array(modes, pa.string())),
            spread([record.mode_step for record in records], np.int64),
            spread([record.time_ns for record in records], np.int64),
        ]

    def _name_codes(self, names: tuple[str, ...]) -> NDArray[np.int32]:
        codes = self._codes.get(names)
        if codes is None:
            numbers = [self._dictionary.setdefault(name, len(self._dictionary)) for name in names]
            codes = self._codes[names] = np.array(numbers, dtype=np.int32)
        return codes

    def _stats(self, records: Sequence[StepRecord]) -> pa.Table | None:
        if not records:
            return None
        matrices = [record.stats for record in records if record.stats is not None]
        columns = self._keys(records, [len(matrix) for matrix in matrices])
        codes = np.concatenate([self._name_codes(record.names) for record in records])
        used = np.zeros(len(self._dictionary), dtype=bool)
        used[codes] = True
        compact = (np.cumsum(used, dtype=np.int32) - 1)[codes]
        spelled = list(self._dictionary)
        names = pa.array([spelled[code] for code in np.flatnonzero(used)], pa.string())
        columns.append(pa.DictionaryArray.from_arrays(compact, names))
        by_column = np.ascontiguousarray(np.concatenate(matrices).T)
        for column, values in zip(STAT_COLUMNS, by_column, strict=True):
            columns.append(pa.array(values.astype(np.int64) if column in COUNT_COLUMNS else values))
        return pa.Table.from_arrays(columns, names=TABLES["stats"].names)

    def _derived(self, records: Sequence[StepRecord]) -> pa.Table:
        rows = [triple for record in records for triple in record.derived]
        return self._of(
            "derived",
            records,
            [len(record.derived) for record in records],
            [
                pa.array([name for name, _, _ in rows], pa.string()),
                pa.array([quantity for _, quantity, _ in rows], pa.string()),
                _lists([vector for _, _, vector in rows]),
            ],
        )

    def _values(self, records: Sequence[StepRecord]) -> pa.Table:
        rows = [pair for record in records for pair in record.values]
        return self._of(
            "values",
            records,
            [len(record.values) for record in records],
            [
                pa.array([name for name, _ in rows], pa.string()),
                pa.array([array.dtype.newbyteorder("<").str for _, array in rows], pa.string()),
                pa.array([list(array.shape) for _, array in rows], pa.list_(pa.int64())),
                pa.array([_little_endian_bytes(array) for _, array in rows], pa.binary()),
            ],
        )

    def _scalars(self, records: Sequence[StepRecord]) -> pa.Table:
        rows = [pair for record in records for pair in record.scalars]
        return self._of(
            "scalars",
            records,
            [len(record.scalars) for record in records],
            [
                pa.array([name for name, _ in rows], pa.string()),
                pa.array([value for _, value in rows], pa.float64()),
            ],
        )

    def _steps(self, records: Sequence[StepRecord]) -> pa.Table:
        timing = [pa.array([record.timing.get(column) for record in records], pa.int64()) for column in TIMING_COLUMNS]
        saved = pa.array([record.saved for record in records], pa.bool_())
        return self._of("steps", records, [1] * len(records), [saved, *timing])

    def _of(
        self, table: str, records: Sequence[StepRecord], counts: Sequence[int], columns: list[pa.Array]
    ) -> pa.Table:
        return pa.Table.from_arrays([*self._keys(records, counts), *columns], names=TABLES[table].names)


def write_options(schema: pa.Schema) -> dict[str, Any]:
    """Encodings of a table: dictionaries for text, split bytes for floats, deltas for integers.

    Whole tensors hardly shrink, by a tenth where zstd takes as long as all the rest of reading them; snappy passes over
    what does not shrink, and every reader knows it.
    """
    encoding = {}
    for field in schema:
        if pa.types.is_floating(field.type):
            encoding[field.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(field.type):
            encoding[field.name] = "DELTA_BINARY_PACKED"
    return {
        "compression": {
            **dict.fromkeys(_leaves(schema), "zstd"),
            **({"data": "snappy"} if "data" in schema.names else {}),
        },
        "use_dictionary": [name for name in schema.names if name in _TEXT_COLUMNS],
        "column_encoding": encoding,
        "store_schema": False,
    }


def _leaves(schema: pa.Schema) -> list[str]:
    """Names of columns as Parquet has them."""
    return [f"{each.name}.list.element" if pa.types.is_list(each.type) else each.name for each in schema]


def write_parquet(table: pa.Table, sink: Any) -> None:
    """Write a table with those encodings."""
    pq.write_table(table, sink, row_group_size=ROW_GROUP_ROWS, **write_options(table.schema))


def join_parquet(parts: Sequence[Path], sink: Any) -> None:
    """Write the rows of several files into one, in order and in bounded memory."""
    schema = pq.read_schema(parts[0])
    with pq.ParquetWriter(sink, schema, **write_options(schema)) as writer:
        waiting: list[pa.Table] = []
        for part in parts:
            for batch in pq.ParquetFile(part).iter_batches(batch_size=ROW_GROUP_ROWS):
                waiting.append(pa.Table.from_batches([batch]))
                if sum(table.num_rows for table in waiting) >= ROW_GROUP_ROWS:
                    writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP_ROWS)
                    waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP_ROWS)


def _lists(vectors: Sequence[NDArray[np.float64]]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, vectors)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate([*vectors, np.empty(0)]))


def _little_endian_bytes(array: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes()
