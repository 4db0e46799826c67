"""Columns that came to a table after traces had been written: of files without them they are read as nulls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from stepwatch.probe.store.schema import TABLES, TIMING_COLUMNS

_FROM_THE_BEGINNING = ("duration_ns", "data_ns", "forward_ns", "backward_ns", "optimizer_ns", "hook_ns")

ADDED_COLUMNS = pa.schema([TABLES["steps"].field(name) for name in TIMING_COLUMNS if name not in _FROM_THE_BEGINNING])
"""All of ``steps``."""


def present(columns: Sequence[str], names: Iterable[str]) -> list[str]:
    """The columns to ask a file for that has those names: all but added ones that it lacks."""
    there = set(names)
    return [column for column in columns if column in there or column not in ADDED_COLUMNS.names]


def completed(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Rows with those columns, in that order; added ones that they lack are null."""
    for column in columns:
        if column not in rows.column_names and column in ADDED_COLUMNS.names:
            field = ADDED_COLUMNS.field(column)
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows.select(columns)
