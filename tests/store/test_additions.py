"""Traces from before a column was added: read as nulls, by the reader, by rules and by SQL."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stepwatch.probe.store.additions import ADDED_COLUMNS
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.replay import analyze
from stepwatch.rules.sql import query
from stepwatch.rules.testing import SyntheticRun


def older(run: Path) -> Path:
    """The run as it was written before there were such columns."""
    for file in (run / "steps").rglob("*.parquet"):
        rows = pq.read_table(file, partitioning=None)
        pq.write_table(rows.drop_columns(list(ADDED_COLUMNS.names)), file)
    return run


def test_a_run_without_added_columns_is_whole(tmp_path: Path) -> None:
    now = SyntheticRun(30).loss(lambda step: 1 / (1 + step)).write(tmp_path / "now")
    run = older(SyntheticRun(30).loss(lambda step: 1 / (1 + step)).write(tmp_path / "old"))
    trace = Trace(run)
    rows = trace.table("steps")
    assert rows.num_rows == 30 and rows["samples"].null_count == 30 and rows["time_ns"].null_count == 0
    assert rows.schema == Trace(now).table("steps").schema
    analysis = analyze(trace, configure(None))
    assert analysis.warnings == []
    assert [r.status for r in analysis.results] == [r.status for r in analyze(Trace(now), configure(None)).results]
    counted = query("SELECT count(*) AS n, count(loader_ns) AS waits FROM steps", [run]).to_pylist()
    assert counted == [{"n": 30, "waits": 0}]
    both = query("SELECT run, count(*) AS n FROM steps GROUP BY run", [tmp_path]).to_pylist()
    assert [row["n"] for row in both] == [30, 30]


def test_a_file_without_another_column_is_left_out_with_a_warning(tmp_path: Path) -> None:
    run = SyntheticRun(30).loss(0.5).write(tmp_path / "run")
    for file in (run / "steps").rglob("*.parquet"):
        pq.write_table(pa.table({"samples": pa.array([1], pa.int64())}), file)
    trace = Trace(run)
    assert trace.table("steps").num_rows == 0 and "left out" in trace.warnings[0]
    assert "left out" in analyze(Trace(run), configure(None)).warnings[0]
