"""RUN/findings: what was found, by whom, and what was done about it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from stepwatch.probe.store.layout import write_atomically
from stepwatch.probe.store.schema import TABLES
from stepwatch.probe.store.tables import write_parquet


class FindingLog:
    """Appends findings and actions to a run; each call is one file, whole or absent.

    Args:
        run_dir: the run's directory, or the one that stands for a run that cannot be written.
        judged_by: "hook", "watch" or "analyze".
    """

    def __init__(self, run_dir: Path, judged_by: str) -> None:
        self._folder = run_dir / "findings"
        self._judged_by = judged_by
        self._numbers = itertools.count()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record findings; each row holds the columns of a finding, ``finding_id`` first of all."""
        self._write([{"event": "found", **row} for row in rows])

    def append_action(self, finding_id: str, action: str, outcome: str, detail: str, attempt: int = 0) -> None:
        """Record what was done about a finding of an attempt: the action's name, "done" or "failed", and details."""
        row = {"finding_id": finding_id, "event": "action", "attempt": attempt, "action": action}
        self._write([{**row, "outcome": outcome, "detail": detail}])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        now = time.time_ns()
        schema = TABLES["findings"]
        full = [{**dict.fromkeys(schema.names), "time_ns": now, "judged_by": self._judged_by, **row} for row in rows]
        sink = pa.BufferOutputStream()
        write_parquet(pa.Table.from_pylist(full, schema=schema), sink)
        self._folder.mkdir(exist_ok=True)  # and not its parents: a run that was removed is not made again
        name = f"{now}-{os.getpid()}-{next(self._numbers):04d}.parquet"
        write_atomically(self._folder / name, sink.getvalue().to_pybytes())
