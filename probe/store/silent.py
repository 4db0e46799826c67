"""The writer of a rank that is not recorded."""

from __future__ import annotations

from typing import Any

from stepwatch.probe.store.records import StepRecord, TensorInfo


class SilentWriter:
    """Takes what :class:`~stepwatch.probe.store.writer.TraceWriter` takes, and forgets it."""

    def describe(self, info: TensorInfo) -> None:
        """Nothing is described."""

    def submit(self, record: StepRecord) -> bool:
        """No record is taken."""
        return False

    def submit_system(self, rows: list[Any]) -> None:
        """No sample is taken."""

    def count(self, counter: str, n: int = 1) -> None:
        """Nothing is counted."""

    def note(self, text: str) -> None:
        """Nothing is said."""

    def set_start_step(self, step: int) -> None:
        """There is no attempt to describe."""

    def write_recent(self) -> None:
        """Nothing was kept."""

    def flush(self) -> None:
        """Nothing waits."""

    def close(self, status: str, reason: str = "", last_step: int | None = None) -> None:
        """Nothing is left to write."""
