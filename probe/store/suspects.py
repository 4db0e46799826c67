"""Which checkpoints may hold what recorded findings are about, and which is the last that does not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stepwatch.probe.store.checkpoints import CheckpointNote, read_checkpoints
from stepwatch.probe.store.reader import Trace

CORRUPTING = ("ExplodingTensor", "DivergingLoss")
"""Rules whose errors say that the weights are not worth keeping from then on."""


@dataclass(frozen=True)
class Onset:
    """A finding after which checkpoints are suspect.

    Attributes:
        rule: its rule.
        step: global step at which the problem began.
        attempt: the attempt of the job.
    """

    rule: str
    step: int
    attempt: int


@dataclass(frozen=True)
class JudgedCheckpoint:
    """A checkpoint, and why it is suspect; "" where it is not."""

    note: CheckpointNote
    why: str

    @property
    def suspect(self) -> bool:
        """Whether it may hold what a finding is about."""
        return bool(self.why)

    def to_json(self) -> dict[str, Any]:
        """The object that ``checkpoints --json`` prints."""
        return {"path": self.note.path, "step": self.note.step, "rank": self.note.rank} | {
            "attempt": self.note.attempt,
            "suspect": self.suspect,
            "why": self.why,
        }


def recorded_onsets(rows: Iterable[dict[str, Any]]) -> list[Onset]:
    """Where the weights went wrong, as findings in the trace say."""
    return [
        Onset(row["rule"], row["first_step"], row.get("attempt") or 0)
        for row in rows
        if row["rule"] in CORRUPTING and row["severity"] == "error"
    ]


def judge_checkpoints(trace: Trace, troubles: Sequence[Onset]) -> list[JudgedCheckpoint]:
    """Every checkpoint that the job noted.

    One is suspect that was written after the step at which the problem began, in that attempt or in a later one that
    went on from a suspect checkpoint: from a step after the onset.
    """
    return [JudgedCheckpoint(note, _why(trace, note, troubles)) for note in read_checkpoints(trace.path)]


def last_healthy(checkpoints: Iterable[JudgedCheckpoint]) -> CheckpointNote | None:
    """The checkpoint to go back to."""
    healthy = [each.note for each in checkpoints if not each.suspect]
    return max(healthy, key=lambda note: (note.attempt, note.step, note.time_ns), default=None)


def resumed_from_suspect(trace: Trace, troubles: Sequence[Onset], start: int | None = None) -> str:
    """What to say where the latest attempt went on from a step at which only suspect checkpoints are; else "".

    ``start`` is that step, where the attempt has not recorded it yet.
    """
    entries = trace.attempts(0).entries if 0 in trace.ranks else []
    start = start if start is not None or len(entries) < 2 else entries[-1].get("start_step")
    if not start or len(entries) < 2:
        return ""
    there = [
        each
        for each in judge_checkpoints(trace, troubles)
        if each.note.step == start and each.note.attempt < len(entries) - 1
    ]
    if not there or not all(each.suspect for each in there):
        return ""
    return f"it went on from a suspect checkpoint, {there[-1].note.path}: {there[-1].why}"


def _why(trace: Trace, note: CheckpointNote, troubles: Sequence[Onset]) -> str:
    entries = trace.attempts(note.rank).entries
    for trouble in troubles:
        starts = [entry.get("start_step") or 0 for entry in entries[trouble.attempt + 1 : note.attempt + 1]]
        carried = trouble.attempt < note.attempt and all(start > trouble.step for start in starts)
        if (note.attempt == trouble.attempt or carried) and note.step > trouble.step:
            return f"written after {trouble.rule} began at step {trouble.step}"
    return ""
