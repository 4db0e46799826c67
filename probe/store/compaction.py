"""The files of a writer's tables: written whole, and joined as the run goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from stepwatch.probe.store.layout import Part, list_parts
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.tables import join_parquet, write_parquet
from stepwatch.probe.store.tail import TailWriter

FAN_IN = 16
MAX_JOINED_BYTES = 256 << 20


class PartStore:
    """Numbers flushes, writes their tables, and joins files so that a long run ends with few.

    ``FAN_IN`` files of one level become one of the next, so a row is rewritten once per level: the cost
    per row grows with the logarithm of the run's length. The joined file is whole before its parts are
    removed, and its name says which it replaces: a crash in between leaves nothing double.

    Args:
        folders: folder of each table.
        attempt: attempt that writes.
        tail: where each flush is written once more when its files are there.
    """

    def __init__(self, folders: Mapping[str, Path], attempt: int, tail: TailWriter | None = None) -> None:
        self._folders = folders
        self._attempt = attempt
        self._tail = tail
        self._records: Sequence[StepRecord] = ()
        self._next = 0
        self._rows: dict[str, int] = {}
        self._levels: dict[str, list[tuple[Part, int]]] = {table: [] for table in folders}
        self.pending: dict[str, pa.Table] = {}
        for folder in folders.values():
            _clean(folder)

    def prepare(self, tables: Mapping[str, pa.Table], records: Sequence[StepRecord] = ()) -> None:
        """The tables of the next flush, in the order in which they are to be written, and what they were made of."""
        self.pending = dict(tables)
        self._rows = {table: rows.num_rows for table, rows in tables.items()}
        self._records = records

    def discard(self) -> None:
        """Give up what could not be written."""
        self.pending.clear()
        self._next += 1

    def write(self) -> None:
        """Write what is pending; after an OSError the next call goes on where this one failed."""
        if not self.pending:
            return
        part = Part(self._attempt, self._next, self._next)
        for table in list(self.pending):
            folder = self._folders[table]
            folder.mkdir(parents=True, exist_ok=True)
            content = self.pending[table]
            _write_whole(folder, part, lambda sink, content=content: write_parquet(content, sink))
            del self.pending[table]
            self._levels[table].append((part, 0))
        if self._tail is not None:
            self._tail.append(self._next, self._rows, self._records)
        self._records = ()
        self._next += 1
        for table in self._levels:
            self._compact(table)

    def compact_all(self) -> None:
        """The run is over: join each table's files into one, unless that is large."""
        if self._tail is not None:
            self._tail.close()
        for table, levels in self._levels.items():
            if len(levels) > 1:
                try:
                    self._join(table, len(levels))
                except OSError:
                    return

    def _compact(self, table: str) -> None:
        levels = self._levels[table]
        while len(levels) >= FAN_IN and len({level for _, level in levels[-FAN_IN:]}) == 1:
            if not self._join(table, FAN_IN):
                return

    def _join(self, table: str, count: int) -> bool:
        levels = self._levels[table]
        folder = self._folders[table]
        parts = [part for part, _ in levels[-count:]]
        paths = [folder / part.file_name for part in parts]
        if sum(path.stat().st_size for path in paths) > MAX_JOINED_BYTES:
            return False
        joined = Part(self._attempt, parts[0].first, parts[-1].last)
        _write_whole(folder, joined, lambda sink: join_parquet(paths, sink))
        for path in paths:
            path.unlink()
        level = max(level for _, level in levels[-count:]) + 1
        levels[-count:] = [(joined, level)]
        return True


def _write_whole(folder: Path, part: Part, write: object) -> None:
    final = folder / part.file_name
    beside = folder / f".{part.file_name}.tmp"
    try:
        with beside.open("wb") as sink:
            write(sink)  # type: ignore[operator]
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(beside, final)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _clean(folder: Path) -> None:
    """Remove what a writer that was killed left behind: unfinished files, and parts already joined."""
    if not folder.is_dir():
        return
    kept = {part.file_name for part in list_parts(folder)}
    for path in folder.iterdir():
        if path.name.endswith(".tmp") or (Part.parse(path.name) and path.name not in kept):
            path.unlink(missing_ok=True)
