"""RUN/checkpoints: which checkpoints the job wrote, one file for each."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.layout import write_json
from stepwatch.probe.store.rankfile import read_json


@dataclass(frozen=True)
class CheckpointNote:
    """A checkpoint that the job wrote.

    Attributes:
        path: where.
        step: number of optimizer steps done.
        rank: which rank said so.
        attempt: the attempt of that rank.
        time_ns: when.
    """

    path: str
    step: int
    rank: int
    attempt: int
    time_ns: int


def note_checkpoint(run_dir: Path, rank: int, step: int, path: str | os.PathLike[str]) -> None:
    """Remember that a checkpoint was written.

    Raises:
        OSError: the run cannot be written.
    """
    attempts = read_json(run_dir / "ranks" / f"rank={rank:05d}.json").get("attempts", [])
    now = time.time_ns()
    note = CheckpointNote(os.path.abspath(path), step, rank, max(len(attempts) - 1, 0), now)
    folder = run_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{step:010d}-{rank:05d}-{now}.json", asdict(note))


def read_checkpoints(run_dir: Path) -> list[CheckpointNote]:
    """Checkpoints by attempt and step; of a path that was written again, the last."""
    latest: dict[str, CheckpointNote] = {}
    for file in sorted((run_dir / "checkpoints").glob("*.json")):
        try:
            content = read_json(file)
            note = CheckpointNote(
                str(content["path"]),
                int(content["step"]),
                int(content["rank"]),
                int(content["attempt"]),
                int(content["time_ns"]),
            )
        except (TraceError, KeyError, TypeError, ValueError):
            continue
        if note.path not in latest or latest[note.path].time_ns < note.time_ns:
            latest[note.path] = note
    return sorted(latest.values(), key=lambda note: (note.attempt, note.step, note.rank, note.path))
