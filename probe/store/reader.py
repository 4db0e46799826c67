"""Reads a trace, finished or growing, without torch."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stepwatch.probe.store import remote
from stepwatch.probe.store.additions import ADDED_COLUMNS, completed, present
from stepwatch.probe.store.arrow import rows_of_file
from stepwatch.probe.store.attempts import Attempts
from stepwatch.probe.store.errors import first_line
from stepwatch.probe.store.identity import is_alive
from stepwatch.probe.store.layout import end_file, list_parts, node_folder, rank_folder
from stepwatch.probe.store.rankfile import RankFiles, read_json
from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.runinfo import EndInfo, read_run_info
from stepwatch.probe.store.schema import STEP_TABLES, TABLES
from stepwatch.probe.store.shards import joined

log = logging.getLogger("stepwatch")

T = TypeVar("T")

_RETRIES = 5
_RANK_FILE = re.compile(r"^rank=(\d+)\.json$")
_SILENT_SECONDS = 60.0
_REFRESH_SECONDS = 2.0


class Trace:
    """A run's directory, or one that smdebug wrote.

    Attributes:
        source: the directory, as it was given.
        path: the same; of one that smdebug wrote, that of the same as a run, which lasts as long as the process.
        info: run.json.
        warnings: what could not be read, one line per damaged file.

    Raises:
        TraceError: the directory is not a trace that this version can read.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.source = self.path = Path(run_dir)
        self._grow: Callable[[Path], None] = remote.refresh
        if not (self.path / "run.json").exists():
            from stepwatch.probe.store.smdebug import converted
            from stepwatch.probe.store.smdebug.profiler import is_importable

            if is_importable(self.path):
                self.path = converted.converted(self.path.resolve())
                self._grow = converted.refresh
        self.info = read_run_info(self.path)
        self.warnings: list[str] = []
        self._refreshed = time.monotonic()
        self._rank = RankFiles(self.path).of

    def refresh(self) -> None:
        """Bring a copy of a run up to date, every other second; nothing where it is the run itself.

        Copied are runs in object stores, and directories that smdebug is writing.

        Raises:
            OSError: the store cannot be reached.
            TraceError: what smdebug wrote cannot be read.
        """
        if time.monotonic() - self._refreshed > _REFRESH_SECONDS:
            self._grow(self.path)
            self._refreshed = time.monotonic()

    # -- about the run --------------------------------------------------------------------------------

    @property
    def ranks(self) -> list[int]:
        """Ranks that have written something, ascending."""
        return sorted(int(match[1]) for name in _names(self.path / "ranks") if (match := _RANK_FILE.match(name)))

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes that were sampled."""
        return sorted(name.partition("=")[2] for name in _names(self.path / "system") if name.startswith("node="))

    @property
    def notes(self) -> list[str]:
        """What the hook could not record, and why."""
        return list(dict.fromkeys(note for rank in self.ranks for note in self._rank(rank).notes))

    @property
    def counters(self) -> dict[str, int]:
        """Sums over ranks: dropped records, errors of the hook and of the writer."""
        total: dict[str, int] = {}
        for rank in self.ranks:
            for counter, value in self._rank(rank).counters.items():
                total[counter] = total.get(counter, 0) + value
        return total

    def attempts(self, rank: int) -> Attempts:
        """Starts of the job, as this rank recorded them."""
        return self._rank(rank).attempts

    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor described by any rank."""
        found: dict[str, TensorInfo] = {}
        for name in sorted(_names(self.path), key=lambda name: (name != "tensors.json", name)):
            if name == "tensors.json" or (name.startswith("tensors-rank=") and name.endswith(".json")):
                for tensor, entry in read_json(self.path / name).items():
                    found.setdefault(tensor, TensorInfo.from_json(tensor, entry))
        return found

    def end(self, rank: int) -> EndInfo | None:
        """How the rank's latest attempt ended; None while it runs, or when it was killed."""
        path = end_file(self.path, rank)
        if not os.path.exists(path):  # asked at every look, and several times as fast as a Path's own
            return None
        content = read_json(path)
        if not content or content.get("attempt") != len(self.attempts(rank).entries) - 1:
            return None
        return EndInfo(
            status=str(content.get("status", "")),
            reason=str(content.get("reason", "")),
            last_step=content.get("last_step"),
            time_ns=int(content.get("time_ns", 0)),
            attempt=int(content["attempt"]),
        )

    def live(self) -> bool:
        """Whether a rank is still being written.

        On this machine the writing process is looked for; one on another machine counts as alive while
        its files are younger than a minute.
        """
        return any(self._rank_is_live(rank) for rank in self.ranks)

    def status(self) -> str:
        """How the run stands: "live", or the worst of how its ranks ended, "killed" where none has said."""
        if self.live():
            return "live"
        ends = [end.status for rank in self.ranks if (end := self.end(rank)) is not None]
        return next((status for status in ends if status != "finished"), ends[0] if ends else "killed")

    def _rank_is_live(self, rank: int) -> bool:
        entries = self.attempts(rank).entries
        if not entries or self.end(rank) is not None:
            return False
        alive = is_alive(entries[-1])
        return self._heard_of(rank) if alive is None else alive

    def _heard_of(self, rank: int) -> bool:
        newest = 0.0
        for folder in (rank_folder(self.path, "steps", rank), self.path / "ranks"):
            newest = max([newest, *(_modified(folder / name) for name in _names(folder))])
        return time.time() - newest < _SILENT_SECONDS

    # -- tables ---------------------------------------------------------------------------------------

    def table(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        ranks: Sequence[int] | None = None,
        steps: tuple[int | None, int | None] | None = None,
        modes: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows of a step table that count, in recorded order, with a column ``rank`` added.

        Args:
            name: "stats", "derived", "values", "scalars" or "steps".
            columns: columns to read; all where None.
            ranks: ranks to read; all where None.
            steps: (first, end): global steps in [first, end); None on a side leaves it open.
            modes: names of modes.
            names: names of tensors or scalars.

        Raises:
            ValueError: there is no such table or column.
        """
        if name not in STEP_TABLES:
            raise ValueError(f"table {name!r} is unknown; expected one of {', '.join(STEP_TABLES)}")
        schema = TABLES[name]
        wanted = list(schema.names if columns is None else columns)
        for column in wanted:
            if column not in (*schema.names, "rank"):
                raise ValueError(f"{name} has no column {column!r}; expected one of {', '.join(schema.names)}")
        read = list(dict.fromkeys([*(c for c in wanted if c != "rank"), "step", "mode"]))
        condition = _condition(steps, modes, names)
        pieces = []
        for rank in self.ranks if ranks is None else ranks:
            rows = self._read_rank(name, rank, read, condition)
            number = np.full(rows.num_rows, rank, np.int32)
            column = pa.Array.from_buffers(pa.int32(), len(number), [None, pa.py_buffer(number)])
            pieces.append(rows.append_column("rank", column))
        if not pieces:
            empty = pa.schema([*(schema.field(c) for c in read), pa.field("rank", pa.int32())])
            pieces = [pa.Table.from_batches([], empty)]
        keep = wanted if "rank" in wanted else [*wanted, "rank"]
        return pa.concat_tables(pieces).select(keep)

    def whole_stats(
        self,
        *,
        steps: tuple[int | None, int | None] | None = None,
        modes: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows of ``stats`` of whole tensors, by (name, mode, step): shards of several ranks are one row.

        ``rank`` is the lowest of the ranks that recorded it. A step that a rank of the shards has not recorded
        (yet) is left out. Arguments as for :meth:`table`.
        """
        rows = self.table("stats", steps=steps, modes=modes, names=names)
        shards = {name: info.shards for name, info in self.tensors().items() if info.shards}
        if shards:
            sharded = pc.is_in(rows["name"], pa.array(list(shards), pa.string()))
            whole = joined(rows.filter(sharded), shards)
            rows = pa.concat_tables([rows.filter(pc.invert(sharded)), whole])
        return rows.sort_by([("name", "ascending"), ("mode", "ascending"), ("step", "ascending")])

    def system(self, *, since_ns: int | None = None, metrics: Sequence[str] | None = None) -> pa.Table:
        """Samples of all nodes: time_ns, device, metric, value, node.

        Args:
            since_ns: samples from this time on; all where None.
            metrics: names of metrics; all where None.
        """
        parts = []
        if since_ns is not None:
            parts.append(pc.field("time_ns") >= since_ns)
        if metrics is not None:
            parts.append(pc.field("metric").isin(list(metrics)))
        condition = reduce(lambda a, b: a & b, parts) if parts else None
        return pa.concat_tables(
            [
                TABLES["system"].empty_table().append_column("node", pa.array([], pa.string())),
                *(retry_vanished(partial(self._read_node, node, condition)) for node in self.nodes),
            ]
        )

    def _read_node(self, node: str, condition: pc.Expression | None) -> pa.Table:
        folder = node_folder(self.path, node)
        pieces = [TABLES["system"].empty_table()]
        for part in list_parts(folder):
            rows = self._read_file(folder / part.file_name, None, condition)
            if rows is not None:
                pieces.append(rows)
        joined = pa.concat_tables(pieces)
        return joined.append_column(
            "node", pa.array([node], pa.string()).take(pa.array([0] * joined.num_rows, pa.int32()))
        )

    def findings(self, records: Path | None = None) -> list[dict[str, Any]]:
        """Recorded findings in order, each with ``actions``: what was done about it.

        An id found by several judges (the hook and a sidecar) is one finding.

        Args:
            records: the directory that stands for a run that cannot be written; the run's own by default.
        """
        folder = (records or self.path) / "findings"
        found: dict[str, dict[str, Any]] = {}
        actions: list[dict[str, Any]] = []
        for name in sorted(_names(folder)):
            if not name.endswith(".parquet") or name.startswith("."):
                continue
            rows = self._read_file(folder / name, None, None)
            for row in rows.to_pylist() if rows is not None else []:
                if row["event"] == "found":
                    row["evidence"] = json.loads(row["evidence"] or "{}")
                    found.setdefault(row["finding_id"], {**row, "actions": []})
                else:
                    actions.append(row)
        for row in actions:
            if row["finding_id"] in found:
                kept = {key: row.get(key) for key in ("action", "outcome", "detail", "time_ns", "attempt")}
                found[row["finding_id"]]["actions"].append(kept)
        return sorted(found.values(), key=lambda row: (row["time_ns"], row["last_step"]))

    def _read_rank(self, table: str, rank: int, columns: list[str], condition: pc.Expression | None) -> pa.Table:
        attempts = self.attempts(rank)
        folder = rank_folder(self.path, table, rank)

        def read() -> pa.Table:
            pieces = [pa.Table.from_batches([], pa.schema([TABLES[table].field(column) for column in columns]))]
            for part in list_parts(folder):
                rows = self._read_file(folder / part.file_name, columns, condition)
                if rows is not None:
                    pieces.append(attempts.drop_superseded(rows, part.attempt))
            return pa.concat_tables(pieces)

        return retry_vanished(read)

    def _read_file(self, path: Path, columns: list[str] | None, condition: pc.Expression | None) -> pa.Table | None:
        """A file's rows, or None with a warning when it is damaged."""
        try:
            if columns is None or not set(columns) & set(ADDED_COLUMNS.names):
                return rows_of_file(path, columns, condition)
            there = present(columns, pq.read_schema(path).names)
            return completed(rows_of_file(path, there, condition), columns)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            self.warn(path, error)
            return None

    def warn(self, path: Path, error: Exception) -> None:
        """Say once that a file is left out."""
        text = f"{path}: left out, not a readable Parquet file: {first_line(error)}"
        if not any(known.startswith(f"{path}:") for known in self.warnings):
            self.warnings.append(text)
            log.warning("%s", text)


def retry_vanished(read: Callable[[], T]) -> T:
    """Read again when a file that was listed is gone: it has been joined with others meanwhile."""
    for _ in range(_RETRIES):
        try:
            return read()
        except FileNotFoundError:
            continue
    return read()


def _condition(
    steps: tuple[int | None, int | None] | None,
    modes: Sequence[str] | None,
    names: Sequence[str] | None,
) -> pc.Expression | None:
    parts = []
    if steps is not None and steps[0] is not None:
        parts.append(pc.field("step") >= steps[0])
    if steps is not None and steps[1] is not None:
        parts.append(pc.field("step") < steps[1])
    if modes is not None:
        parts.append(pc.field("mode").isin(list(modes)))
    if names is not None:
        parts.append(pc.field("name").isin(list(names)))
    return reduce(lambda a, b: a & b, parts) if parts else None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def iterate_file(path: Path, columns: list[str], rows: int) -> Iterator[pa.Table]:
    """A file's rows in pieces of at most ``rows``, repeated text as dictionaries.

    Raises:
        ValueError: the file lacks a column.
    """
    repeated = [column for column in ("mode", "name", "quantity", "device", "metric", "dtype") if column in columns]
    try:
        file = pq.ParquetFile(path, read_dictionary=repeated)
    except KeyError as error:
        raise ValueError(f"it has no column {error.args[0].decode()}") from None
    with file:
        there = present(columns, file.schema_arrow.names)
        lacking = set(there) - set(file.schema_arrow.names)
        if lacking:
            raise ValueError(f"it has no column {', '.join(sorted(lacking))}")
        large = file.metadata.num_rows > rows  # in a small file threads cost more than they save
        for batch in file.iter_batches(batch_size=rows, columns=there, use_threads=large):
            yield completed(pa.Table.from_batches([batch]), columns)
