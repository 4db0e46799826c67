"""Writes one rank's part of a trace, in a thread beside the training."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stepwatch.probe.store.compaction import PartStore
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.identity import process_identity
from stepwatch.probe.store.layout import rank_folder, write_json
from stepwatch.probe.store.lock import RankLock
from stepwatch.probe.store.rankfile import RankFile, read_json
from stepwatch.probe.store.recent import RecentSteps
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import FORMAT_VERSION, STEP_TABLES, TABLES
from stepwatch.probe.store.tables import TableBuilder
from stepwatch.probe.store.tail import TailWriter

log = logging.getLogger("stepwatch")

SystemRow = tuple[int, str, str, float]
Listener = Callable[[list[StepRecord]], None]

_LISTENER_SECONDS = 0.05
_open_writers: weakref.WeakSet[TraceWriter] = weakref.WeakSet()


class TraceWriter:
    """Takes records without blocking and writes them every second.

    A flush writes whole files, ``steps`` last, so that a row of ``steps`` is seen only when everything of
    its step is there. A job killed at any moment loses what it had not flushed.

    Args:
        run_dir: the run's directory; made if it is missing.
        rank: this process's rank; one process at a time writes a rank.
        run_info: what run.json holds beside what is known here; written by rank 0.
        flush_seconds: time between flushes.
        flush_bytes: estimated size of waiting records that causes a flush before its time.
        queue_bytes: estimated size above which records are dropped, and counted.
        on_records: called in the writer's thread with records in order, before they are written.

    Raises:
        TraceError: the directory cannot be written, or another process is writing this rank.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        rank: int = 0,
        run_info: dict[str, Any] | None = None,
        flush_seconds: float = 1.0,
        flush_bytes: int = 16 << 20,
        queue_bytes: int = 64 << 20,
        on_records: Listener | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.rank = rank
        self._flush_seconds = flush_seconds
        self._flush_bytes = flush_bytes
        self._queue_bytes = queue_bytes
        self._on_records = on_records
        try:
            for folder in ("ranks", "control", "findings", "end"):
                (self.run_dir / folder).mkdir(parents=True, exist_ok=True)
            self._lock_file = RankLock(self.run_dir, rank)
            self._rank_file = RankFile(self.run_dir, rank)
            self.attempt = self._rank_file.begin_attempt(process_identity())
            if rank == 0:
                self._write_run_info(run_info or {})
            self._rank_file.save()
        except OSError as error:
            raise TraceError(f"{self.run_dir}: cannot be written: {error.strerror or error}") from None
        self._builder = TableBuilder(self.attempt)
        node = socket.gethostname() or "localhost"
        folders = {table: rank_folder(self.run_dir, table, rank) for table in STEP_TABLES}
        folders["system"] = self.run_dir / "system" / f"node={node}"
        self._parts = PartStore(folders, self.attempt, TailWriter(self.run_dir, rank, self.attempt))
        self._tensors: dict[str, TensorInfo] = {}
        self._tensors_changed = False
        self._queue: deque[StepRecord] = deque()
        self._system_rows: deque[SystemRow] = deque(maxlen=200_000)
        self._waiting: list[StepRecord] = []
        self._recent = RecentSteps()
        self._recent_wanted = False
        self._record_bytes = 4096
        self._mutex = threading.Lock()
        self._wake = threading.Event()
        self._flushed = threading.Condition()
        self._flush_requests = 0
        self._flush_answers = 0
        self._closing = False
        self._inert = False
        _open_writers.add(self)
        self._thread = threading.Thread(target=self._run, name="stepwatch-writer", daemon=True)
        self._thread.start()

    # -- called by the training thread ----------------------------------------------------------------

    def describe(self, info: TensorInfo) -> None:
        """Describe a tensor, before the first record that holds it."""
        with self._mutex:
            self._tensors[info.name] = info
            self._tensors_changed = True

    def submit(self, record: StepRecord) -> bool:
        """Take a record; never blocks. False where it was dropped, because the queue is full or closed."""
        if self._inert or self._closing:
            return False
        with self._mutex:
            waiting = (len(self._queue) + len(self._waiting)) * self._record_bytes
            if waiting + self._record_bytes > self._queue_bytes:
                self._rank_file.count("dropped_records")
                return False
            self._queue.append(record)
        if waiting > self._flush_bytes:
            self._wake.set()
        return True

    def submit_system(self, rows: list[SystemRow]) -> None:
        """Take samples of the machine's use; of more than the queue holds the oldest are lost."""
        if not self._inert and not self._closing:
            self._system_rows.extend(rows)

    def count(self, counter: str, n: int = 1) -> None:
        """Add to a counter of the rank's file."""
        self._rank_file.count(counter, n)

    def note(self, text: str) -> None:
        """Say once what was not recorded, and why; every command shows it."""
        self._rank_file.note(text)

    def set_start_step(self, step: int) -> None:
        """The first step of this attempt: what an earlier one recorded from there on is superseded."""
        self._rank_file.set_start_step(step)

    def write_recent(self) -> None:
        """Something happened: write what was kept back of the steps before it as well."""
        self._recent_wanted = True

    def flush(self) -> None:
        """Return when everything submitted so far is on disk (or could not be written)."""
        if self._inert or not self._thread.is_alive():
            return
        with self._flushed:
            self._flush_requests += 1
            request = self._flush_requests
            self._wake.set()
            self._flushed.wait_for(lambda: self._flush_answers >= request or not self._thread.is_alive(), timeout=60)

    def close(self, status: str, reason: str = "", last_step: int | None = None) -> None:
        """Write what is left, and how the rank ended. Called again it does nothing.

        Args:
            status: "finished", "exception", "signal" or "stopped".
            reason: the exception, signal or finding.
            last_step: number of optimizer steps done.
        """
        if self._inert or self._closing:
            return
        if status == "exception":
            self.write_recent()
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=60)
        end = {"status": status, "reason": reason, "last_step": last_step, "time_ns": time.time_ns()}
        end["attempt"] = self.attempt
        try:
            write_json(self.run_dir / "end" / f"rank={self.rank:05d}.json", end)
        except OSError as error:
            log.warning("%s: how the run ended cannot be written: %s", self.run_dir, error)
        self._inert = True
        self._lock_file.release()

    # -- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        last_flush = time.monotonic()
        wait = min(self._flush_seconds, _LISTENER_SECONDS) if self._on_records else self._flush_seconds
        while True:
            self._wake.wait(wait)
            self._wake.clear()
            closing, requests = self._closing, self._flush_requests
            self._take()
            due = time.monotonic() - last_flush >= self._flush_seconds
            large = len(self._waiting) * self._record_bytes > self._flush_bytes
            if closing or due or large or requests > self._flush_answers:
                self._flush()
                last_flush = time.monotonic()
                with self._flushed:
                    self._flush_answers = requests
                    self._flushed.notify_all()
            if closing and not self._queue:
                self._parts.compact_all()
                return

    def _take(self) -> None:
        """Resolve what was submitted and show it to the listener."""
        with self._mutex:
            taken = list(self._queue)
            self._waiting += taken
            self._queue.clear()
        for record in taken:
            if record.resolve is not None:
                try:
                    record.resolve(record)
                except Exception as error:
                    self._failed("results of a step could not be fetched", error, "hook_errors")
                record.resolve = None
            if not record.saved:
                self._recent.keep(record)
            self._recent_wanted |= record.alarmed
        if taken:
            self._record_bytes = max(512, sum(map(_size_of, taken)) // len(taken))
        if taken and self._on_records is not None:
            try:
                self._on_records(taken)
            except Exception as error:
                self._failed("judging in the process failed", error, "judge_errors")
        if self._recent_wanted:
            self._recent_wanted = False
            with self._mutex:
                self._waiting += self._recent.release()

    def _flush(self) -> None:
        try:
            self._rank_file.save()  # from which step on the rows of this attempt count, before there are any
            if self._tensors_changed:
                self._write_tensors()
            self._parts.write()  # what an earlier flush could not write comes first
            rows = [self._system_rows.popleft() for _ in range(len(self._system_rows))]
            with self._mutex:
                records, self._waiting = self._waiting, []
            tables = self._builder.build(records) if records else {}
            if rows:
                tables = {"system": _system_table(rows), **tables}
            self._parts.prepare(tables, records)
            self._parts.write()
            self._rank_file.save()
        except OSError as error:
            self._failed("the trace could not be written", error, "write_errors")
        except Exception as error:
            self._parts.discard()
            self._failed("records could not be written", error, "write_errors")

    def _failed(self, what: str, error: Exception, counter: str) -> None:
        text = f"{what}: {type(error).__name__}: {error}"
        self._rank_file.count(counter)
        if self._rank_file.note(text):
            log.warning("%s: %s; training goes on", self.run_dir, text)

    def _write_tensors(self) -> None:
        with self._mutex:
            content = {name: info.to_json() for name, info in self._tensors.items()}
            self._tensors_changed = False
        name = "tensors.json" if self.rank == 0 else f"tensors-rank={self.rank:05d}.json"
        try:
            known = read_json(self.run_dir / name)
            write_json(self.run_dir / name, {**known, **content})
        except OSError:
            self._tensors_changed = True
            raise

    def _write_run_info(self, run_info: dict[str, Any]) -> None:
        path = self.run_dir / "run.json"
        known = read_json(path)
        now = time.time_ns()
        content = {
            "format_version": FORMAT_VERSION,
            "run_id": known.get("run_id") or uuid.uuid4().hex,
            "job_name": self.run_dir.resolve().name,
            "world_size": 1,
            "host": socket.gethostname(),
            "command": list(sys.argv),
            "config": {},
            "start_ns": known.get("start_ns") or now,
            **run_info,
        }
        content["versions"] = {**_versions(), **run_info.get("versions", {})}
        write_json(path, content)

    def forget(self) -> None:
        """This is a forked child: the trace belongs to the parent."""
        self._inert = True


def _forget_in_child() -> None:
    for writer in list(_open_writers):
        writer.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def _size_of(record: StepRecord) -> int:
    matrix = 0 if record.stats is None else record.stats.nbytes
    values = sum(array.nbytes for _, array in record.values)
    derived = sum(vector.nbytes for _, _, vector in record.derived)
    return 512 + matrix + values + derived + 64 * len(record.scalars)


def _system_table(rows: list[SystemRow]) -> pa.Table:
    times, devices, metrics, values = zip(*rows, strict=True)
    columns = [
        pa.array(np.array(times, dtype=np.int64)),
        pa.array(devices, pa.string()),
        pa.array(metrics, pa.string()),
        pa.array(np.array(values, dtype=np.float64)),
    ]
    return pa.Table.from_arrays(columns, schema=TABLES["system"])


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("stepwatch", "numpy", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
