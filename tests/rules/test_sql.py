"""SQL over real traces: what the views hold, and what a query cannot do."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from stepwatch.probe.store.discovery import find_runs
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.findings import FindingLog
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.sql import Database, QueryError, query
from tests.command import stepwatch
from tests.store.conftest import NAMES, record

pytest.importorskip("duckdb")


def write(run: Path, steps: range, *, seed: int = 0, rank: int = 0) -> Path:
    writer = TraceWriter(run, rank=rank, run_info={"config": {"overhead_budget": 0.02}})
    writer.set_start_step(steps.start)
    for name in NAMES:
        writer.describe(TensorInfo(name, (2, 2), "float32", ("weights",), "fc", "Linear"))
    for step in steps:
        assert writer.submit(record(step, seed=seed))
        if step == steps.start:
            writer.flush()
    writer.submit_system([(1, "node", "cpu_percent", 50.0)])
    writer.close("finished", last_step=steps.stop)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs [x] it's"
    write(folder / "a", range(10))
    write(folder / "deep" / "b", range(20), seed=1)
    write(folder / "deep" / "b", range(15, 30), seed=2)  # resumed: steps 15 to 19 were done again
    return folder


def test_the_views_hold_what_the_reader_gives(runs: Path) -> None:
    found = query(
        "SELECT run, name, mode, sum(l2) AS l2, count(*) AS rows FROM stats GROUP BY ALL ORDER BY ALL", [runs]
    )
    for row in found.to_pylist():
        rows = Trace(row["run"]).table("stats", names=[row["name"]]).to_pandas()
        assert row["rows"] == len(rows) and row["l2"] == pytest.approx(rows["l2"].sum())
    assert found.num_rows == 4


def test_steps_that_a_resumed_job_repeated_count_once(runs: Path) -> None:
    rows = query("SELECT step, value FROM scalars WHERE run LIKE '%/b' ORDER BY step", [runs]).to_pylist()
    assert [row["step"] for row in rows] == list(range(30))
    assert rows[14]["value"] == 14.01 and rows[15]["value"] == 15.02


def test_every_view_is_there(runs: Path) -> None:
    FindingLog(runs / "a", "hook").append(
        [{"finding_id": "1", "rule": "R", "last_step": 3, "evidence": '{"unit": "s"}'}]
    )
    FindingLog(runs / "a", "hook").append_action("1", "stop", "done", "stopped")
    database = Database([runs / "a"])
    shown = database.query("SHOW TABLES").column("name").to_pylist()
    assert shown == sorted(["derived", "findings", "runs", "scalars", "stats", "steps", "system", "tensors", "values"])
    assert database.query("SELECT status, config->>'overhead_budget' AS budget FROM runs").to_pylist() == [
        {"status": "finished", "budget": "0.02"}
    ]
    finding = database.query("SELECT rule, actions[1].action AS action, evidence->>'unit' AS unit FROM findings")
    assert finding.to_pylist() == [{"rule": "R", "action": "stop", "unit": "s"}]
    assert database.query("SELECT metric, value, node IS NOT NULL AS node FROM system").to_pylist() == [
        {"metric": "cpu_percent", "value": 50.0, "node": True}
    ]
    joined = "SELECT module_type, max(step) AS last FROM stats JOIN tensors USING (run, name) GROUP BY 1"
    assert database.query(joined).to_pylist() == [{"module_type": "Linear", "last": 9}]
    assert database.query("SELECT * FROM derived").num_rows == 0


def test_ranks_are_a_column(tmp_path: Path) -> None:
    for rank in (0, 1):
        write(tmp_path / "run", range(3 + rank), rank=rank)
    counted = query("SELECT rank, count(*) AS steps FROM steps GROUP BY 1 ORDER BY 1", [tmp_path])
    assert counted.to_pylist() == [{"rank": 0, "steps": 3}, {"rank": 1, "steps": 4}]


@pytest.mark.parametrize(
    "attempt",
    [
        "SELECT * FROM read_csv('{other}')",
        "SELECT * FROM '{other}'",
        "SELECT * FROM glob('/etc/*')",
        "COPY stats TO '{target}'",
        "COPY (SELECT 1) TO '{target}'",
        "ATTACH '{target}'",
        "CREATE TABLE t AS SELECT 1",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT 1; DROP VIEW stats",
        "",
    ],
)
def test_a_query_reads_nothing_else_and_changes_nothing(runs: Path, tmp_path: Path, attempt: str) -> None:
    other, target = tmp_path / "other.csv", tmp_path / "target"
    other.write_text("a\n1\n")
    with pytest.raises(QueryError):
        query(attempt.format(other=other, target=target), [runs])
    assert not target.exists()


def test_a_damaged_file_is_left_out_and_named(runs: Path) -> None:
    (part,) = (runs / "a" / "stats").rglob("*.parquet")
    part.write_bytes(b"PAR1 not any more")
    database = Database([runs])
    rows = database.query("SELECT run, count(DISTINCT step) AS steps FROM stats GROUP BY 1")
    assert rows.to_pylist() == [{"run": str(runs / "deep" / "b"), "steps": 30}]
    (warning,) = database.warnings
    assert str(part) in warning


def test_runs_are_found_by_directory_and_pattern(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    assert find_runs(["."]) == [Path("a"), Path("deep/b")]
    assert find_runs(["**/b", "a", "deep"]) == [Path("deep/b"), Path("a")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraceError, match="holds no run"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(TraceError, match="matches no run"):
        find_runs(["nothing-*"])


def test_the_command_prints_a_table_json_or_csv(runs: Path) -> None:
    select = """SELECT step, sum(numel) AS n, NULL AS empty, 'a[b]' AS text, 0/0.0 AS nan
        FROM stats WHERE step < 2 AND run LIKE '%/a' GROUP BY 1 ORDER BY 1"""
    table = stepwatch("sql", select, runs)
    assert table.returncode == 0, table.stderr
    assert table.stdout.splitlines()[0].split() == ["step", "n", "empty", "text", "nan"] and "a[b]" in table.stdout
    objects = json.loads(stepwatch("sql", select, runs, "--json").stdout)
    assert [row["step"] for row in objects] == [0, 1] and objects[0]["nan"] == "nan" and objects[0]["empty"] is None
    assert isinstance(objects[0]["n"], int)
    lines = list(csv.reader(io.StringIO(stepwatch("sql", select, runs, "--csv").stdout)))
    assert lines[0] == ["step", "n", "empty", "text", "nan"] and lines[1][0] == "0"


def test_what_is_wrong_is_one_line(runs: Path, tmp_path: Path) -> None:
    for arguments, text in (
        (["SELECT nothing FROM stats", runs], "nothing"),
        (["SELECT 1", tmp_path / "none"], "no such directory"),
        (["SELECT 1", runs, "--json", "--csv"], "exclude"),
    ):
        done = stepwatch("sql", *arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and text in done.stderr


def test_every_recipe_of_the_page_runs(runs: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sql.md").read_text()
    recipes = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert len(recipes) >= 8
    database = Database([runs])
    for recipe in recipes:
        database.query(recipe)
