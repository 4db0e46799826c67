"""SQL over runs: DuckDB reads the Parquet files of the traces where they lie."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from stepwatch.probe.store.additions import ADDED_COLUMNS
from stepwatch.probe.store.discovery import find_runs
from stepwatch.probe.store.labels import is_baseline, read_labels
from stepwatch.probe.store.layout import Part, list_parts, rank_folder
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import STEP_TABLES, TABLES
from stepwatch.rules.finding import json_tree

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_TRIES = 5

_STEP_FILES = pa.schema([("filename", pa.string()), ("run", pa.string()), ("rank", pa.int32()), ("cut", pa.int64())])
_SYSTEM_FILES = pa.schema([("filename", pa.string()), ("run", pa.string()), ("node", pa.string())])

_RUNS = pa.schema(
    [
        ("run", pa.string()),
        ("job_name", pa.string()),
        ("run_id", pa.string()),
        ("status", pa.string()),
        ("host", pa.string()),
        ("start_ns", pa.int64()),
        ("world_size", pa.int64()),
        ("command", pa.list_(pa.string())),
        ("versions", pa.string()),
        ("code", pa.string()),
        ("config", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("note", pa.string()),
        ("baseline", pa.bool_()),
    ]
)
_TENSORS = pa.schema(
    [
        ("run", pa.string()),
        ("name", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("dtype", pa.string()),
        ("collections", pa.list_(pa.string())),
        ("module", pa.string()),
        ("module_type", pa.string()),
        ("order", pa.int64()),
    ]
)
_ACTIONS = pa.list_(pa.struct([("action", pa.string()), ("outcome", pa.string()), ("detail", pa.string())]))
_FINDINGS = pa.schema(
    [
        ("run", pa.string()),
        *(field for field in TABLES["findings"] if field.name not in ("event", "action", "outcome", "detail")),
        ("actions", _ACTIONS),
    ]
)

# Rows that a later attempt of the job has replaced do not count; see stepwatch.probe.store.attempts.
_COUNTS = "f.cut IS NULL OR t.step < f.cut OR (t.step = f.cut AND f.cut > 0 AND t.mode NOT IN ('TRAIN', 'GLOBAL'))"

_Files: TypeAlias = "dict[str, list[dict[str, Any]]]"


class QueryError(ValueError):
    """A query that cannot be answered; the message is the database's."""


class Database:
    """Runs as SQL views: runs, tensors, stats, derived, values, scalars, steps, system and findings.

    Each has a column ``run``, the run's directory as it was found; step tables have ``rank`` as well. A query
    reads the files of these runs and no others, writes nothing, and loads no extensions.

    Args:
        runs: runs, directories that hold runs, or patterns of these.

    Raises:
        TraceError: there is no run, or one that cannot be read.
        ImportError: DuckDB is not installed.
    """

    def __init__(self, runs: Sequence[str | os.PathLike[str]]) -> None:
        try:
            import duckdb  # noqa: F401
        except ModuleNotFoundError:
            raise ImportError("SQL needs DuckDB: pip install 'stepwatch[sql]'") from None
        self._traces = [Trace(run) for run in find_runs(runs)]
        self._damaged: dict[str, str] = {}

    @property
    def warnings(self) -> list[str]:
        """What could not be read, one line per damaged file."""
        return list(dict.fromkeys([*self._damaged.values(), *(text for t in self._traces for text in t.warnings)]))

    def query(self, select: str) -> pa.Table:
        """The rows that one SELECT, DESCRIBE or EXPLAIN statement gives.

        Raises:
            QueryError: another statement, or an error in it.
        """
        import duckdb

        for _ in range(_TRIES):
            files = self._files()
            try:
                with self._connect(files) as connection:
                    _require_select(connection, select)
                    return connection.sql(select).to_arrow_table()
            except duckdb.Error as error:
                if not self._trouble(files):
                    raise QueryError(str(error)) from None
            except RuntimeError as error:
                if "interrupted" not in str(error):
                    raise
                raise KeyboardInterrupt from None  # DuckDB takes Ctrl-C for itself
        raise QueryError("the files of the runs change faster than they can be read")

    def _connect(self, files: _Files) -> DuckDBPyConnection:
        import duckdb

        extensions = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        connection = duckdb.connect(config={**extensions, "python_enable_replacements": False})
        allowed = _list_literal([row["filename"] for rows in files.values() for row in rows])
        connection.execute(f"SET allowed_paths = {allowed}")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        connection.execute("CREATE SCHEMA files")
        _create_table(connection, "runs", _RUNS, [_run(trace) for trace in self._traces])
        _create_table(connection, "tensors", _TENSORS, [row for trace in self._traces for row in _tensors(trace)])
        _create_table(connection, "findings", _FINDINGS, [row for trace in self._traces for row in _findings(trace)])
        for name, listed in files.items():
            _create_view(connection, name, listed)
        return connection

    def _files(self) -> _Files:
        """Readable files of each table, with what their names and folders say."""
        found: _Files = {table: [] for table in (*STEP_TABLES, "system")}
        for trace in self._traces:
            run = str(trace.source)
            for rank in trace.ranks:
                attempts = trace.attempts(rank)
                for table in STEP_TABLES:
                    for path, part in self._parts(rank_folder(trace.path, table, rank)):
                        cut = attempts.cut(part.attempt)
                        found[table].append({"filename": path, "run": run, "rank": rank, "cut": cut})
            for folder in sorted((trace.path / "system").glob("node=*")):
                for path, _ in self._parts(folder):
                    found["system"].append({"filename": path, "run": run, "node": folder.name.partition("=")[2]})
        return found

    def _parts(self, folder: Path) -> Iterator[tuple[str, Part]]:
        for part in list_parts(folder):
            path = str((folder / part.file_name).absolute())
            if path not in self._damaged:
                yield path, part

    def _trouble(self, files: _Files) -> bool:
        """Whether a file has vanished, because it was joined with others, or is damaged and now left out."""
        found = False
        for path in (row["filename"] for rows in files.values() for row in rows):
            try:
                pq.read_metadata(path)
            except FileNotFoundError:
                found = True
            except (pa.ArrowException, OSError) as error:
                self._damaged[path] = f"{path}: left out, not a readable Parquet file: {str(error).splitlines()[0]}"
                found = True
        return found


def query(select: str, runs: Sequence[str | os.PathLike[str]]) -> pa.Table:
    """The rows that a SELECT statement over runs gives; see :class:`Database`."""
    return Database(runs).query(select)


def _require_select(connection: DuckDBPyConnection, query: str) -> None:
    import duckdb

    statements = connection.extract_statements(query)
    if [s.type for s in statements] not in ([duckdb.StatementType.SELECT], [duckdb.StatementType.EXPLAIN]):
        raise QueryError(f"the query is {' '.join(query.split())!r}; expected one SELECT statement")


def _create_table(connection: DuckDBPyConnection, name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    """A table of rows; as JSON, for Arrow makes arrays of Python objects only once it has imported pandas."""
    structure = json.dumps([{field.name: _structure(field.type) for field in schema}])
    query = f"CREATE TABLE {name} AS SELECT row.* FROM (SELECT unnest(from_json($1, $2)) AS row)"
    connection.execute(query, [json.dumps(json_tree(rows)), structure])


def _structure(kind: pa.DataType) -> Any:
    """A type as DuckDB spells it in the structure of JSON."""
    if pa.types.is_list(kind):
        return [_structure(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _structure(field.type) for field in kind}
    names = {"string": "VARCHAR", "int32": "INTEGER", "int64": "BIGINT", "double": "DOUBLE", "bool": "BOOLEAN"}
    return {**names, "binary": "BLOB"}[str(kind)]


def _create_view(connection: DuckDBPyConnection, table: str, files: list[dict[str, Any]]) -> None:
    schema = _SYSTEM_FILES if table == "system" else _STEP_FILES
    if not files:
        fields = [field for field in schema if field.name not in ("filename", "cut")]
        _create_table(connection, table, pa.schema([*fields, *TABLES[table]]), [])
        return
    _create_table(connection, f"files.{table}", schema, files)
    if table == "steps":
        _create_table(connection, "files.added", ADDED_COLUMNS, [])
    paths = _list_literal([row["filename"] for row in files])
    connection.execute(
        f"""CREATE VIEW {table} AS SELECT f.* EXCLUDE ({"filename" if table == "system" else "filename, cut"}),
        t.* EXCLUDE (filename) FROM read_parquet({paths}, filename = true, union_by_name = true,
        hive_partitioning = false) t
        JOIN files.{table} f USING (filename) WHERE {"true" if table == "system" else _COUNTS}
        {"UNION ALL BY NAME SELECT * FROM files.added" if table == "steps" else ""}"""
    )


def _list_literal(texts: Sequence[str]) -> str:
    quoted = ", ".join("'" + text.replace("'", "''") + "'" for text in texts)
    return f"[{quoted}]"


def _run(trace: Trace) -> dict[str, Any]:
    info, labels = trace.info, read_labels(trace.source)
    return {
        "run": str(trace.source),
        "job_name": info.job_name,
        "run_id": info.run_id,
        "status": trace.status(),
        "host": info.host,
        "start_ns": info.start_ns,
        "world_size": info.world_size,
        "command": list(info.command),
        "versions": json.dumps(info.versions),
        "code": json.dumps(info.code),
        "config": json.dumps(info.config),
        "tags": list(labels.tags),
        "note": labels.note,
        "baseline": is_baseline(trace.source),
    }


def _tensors(trace: Trace) -> Iterator[dict[str, Any]]:
    for info in trace.tensors().values():
        described = {column: getattr(info, column) for column in _TENSORS.names if column != "run"}
        yield {"run": str(trace.source), **described}


def _findings(trace: Trace) -> Iterator[dict[str, Any]]:
    for row in trace.findings():
        yield {**row, "run": str(trace.source), "evidence": json.dumps(row["evidence"])}
