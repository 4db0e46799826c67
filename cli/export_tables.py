"""A run as CSV or Arrow files, one per table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import TABLES

_STEP_TABLES = ("scalars", "stats", "steps")
_FINDING = ("finding_id", "time_ns", "judged_by", "rank", "rule", "severity", "first_step", "last_step", "value")


def export_tables(trace: Trace, destination: Path, form: str, ranks: Sequence[int] | None = None) -> int:
    """Write scalars, stats, steps, system and findings into a new directory, a file each.

    Rows that a later attempt of the job replaced are left out. Memory does not grow with the length of the run.

    Args:
        trace: the run.
        destination: made, or empty.
        form: "csv", or "arrow": IPC files, types and all, which readers map into memory.
        ranks: ranks of which scalars, statistics and steps are written; all where None.

    Returns:
        number of rows.

    Raises:
        TraceError: the destination holds something.
    """
    make_empty(destination)
    make_writer = pc.CSVWriter if form == "csv" else pa.ipc.new_file
    rows: int = 0
    for name in _STEP_TABLES:
        schema = pa.schema([("rank", pa.int32()), *TABLES[name]])
        with make_writer(destination / f"{name}.{form}", schema) as writer:
            for piece in _pieces(trace, name, ranks or trace.ranks):
                writer.write_table(piece.select(schema.names).cast(schema))
                rows += int(piece.num_rows)
    for name, table in (("system", trace.system()), ("findings", _findings(trace))):
        with make_writer(destination / f"{name}.{form}", table.schema) as writer:
            writer.write_table(table)
        rows += int(table.num_rows)
    return rows


def make_empty(destination: Path) -> None:
    """Make a directory.

    Raises:
        TraceError: it is there and holds something.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise TraceError(f"{destination}: holds something already; expected a new directory")
    destination.mkdir(parents=True, exist_ok=True)


def _findings(trace: Trace) -> pa.Table:
    fields = [TABLES["findings"].field(name) for name in (*_FINDING, "threshold", "message", "suggestion")]
    return pa.Table.from_pylist(trace.findings(), pa.schema(fields))


def _pieces(trace: Trace, name: str, ranks: Sequence[int]) -> Iterator[pa.Table]:
    for rank in ranks:
        for piece in TableCursor(trace, name, rank, TABLES[name].names).read():
            column = pa.array([rank], pa.int32()).take(pa.array([0] * piece.num_rows, pa.int32()))
            yield piece.append_column("rank", column)
