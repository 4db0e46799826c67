"""A run as CSV files, one per table."""

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


def export_csv(trace: Trace, destination: Path, ranks: Sequence[int] | None = None) -> int:
    """Write ``scalars.csv``, ``stats.csv``, ``steps.csv``, ``system.csv`` and ``findings.csv`` into a new directory.

    Rows that a later attempt of the job replaced are left out. Memory does not grow with the length of the run.

    Args:
        trace: the run.
        destination: made, or empty.
        ranks: ranks of which scalars, statistics and steps are written; all where None.

    Returns:
        number of rows.

    Raises:
        TraceError: the destination holds something.
    """
    make_empty(destination)
    rows: int = 0
    for name in _STEP_TABLES:
        schema = pa.schema([("rank", pa.int32()), *TABLES[name]])
        with pc.CSVWriter(destination / f"{name}.csv", schema) as writer:
            for piece in _pieces(trace, name, ranks or trace.ranks):
                writer.write_table(piece.select(schema.names))
                rows += int(piece.num_rows)
    system = trace.system()
    pc.write_csv(system, destination / "system.csv")
    fields = [TABLES["findings"].field(name) for name in (*_FINDING, "threshold", "message", "suggestion")]
    findings = pa.Table.from_pylist(trace.findings(), pa.schema(fields))
    pc.write_csv(findings, destination / "findings.csv")
    return rows + int(system.num_rows) + int(findings.num_rows)


def make_empty(destination: Path) -> None:
    """Make a directory.

    Raises:
        TraceError: it is there and holds something.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise TraceError(f"{destination}: holds something already; expected a new directory")
    destination.mkdir(parents=True, exist_ok=True)


def _pieces(trace: Trace, name: str, ranks: Sequence[int]) -> Iterator[pa.Table]:
    for rank in ranks:
        for piece in TableCursor(trace, name, rank, TABLES[name].names).read():
            column = pa.array([rank], pa.int32()).take(pa.array([0] * piece.num_rows, pa.int32()))
            yield piece.append_column("rank", column)
