"""Keeps the checkpoint that one would go back to from being rotated away while the job goes on with a problem."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from stepwatch.probe.store.checkpoints import note_checkpoint
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.suspects import judge_checkpoints, last_healthy, recorded_onsets

log = logging.getLogger("stepwatch")


def needed_checkpoints(run_dir: Path) -> set[Path]:
    """The last healthy checkpoints that findings of the attempt under way name; none where the run cannot be read."""
    try:
        trace = Trace(run_dir)
        rows = trace.findings()
        attempt = len(trace.attempts(0).entries) - 1
    except (TraceError, OSError):
        return set()
    named = [row["evidence"].get("last_healthy_checkpoint") for row in rows if (row["attempt"] or 0) == attempt]
    return {Path(path) for path in named if isinstance(path, str)}


def may_remove(run_dir: Path, path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint may be rotated away; that it may not is logged."""
    if Path(os.path.abspath(path)) not in needed_checkpoints(run_dir):
        return True
    log.warning("%s is kept: it is the last healthy checkpoint, and a finding is open", path)
    return False


def keep_beside(checkpoint: Path) -> Path:
    """Give the files of a checkpoint a second name, ``kept-`` before it, which nobody rotates; it takes no space.

    Raises:
        OSError: the file system has no hard links, or the checkpoint has gone.
    """
    kept = checkpoint.with_name(f"kept-{checkpoint.name}")
    if kept.exists():
        return kept
    beside = checkpoint.with_name(f".{kept.name}.{os.getpid()}.tmp")
    for folder, _, names in os.walk(checkpoint):
        below = beside / Path(folder).relative_to(checkpoint)
        below.mkdir(parents=True)
        for name in names:
            os.link(Path(folder, name), below / name)
    os.replace(beside, kept)
    return kept


def set_aside(run_dir: Path, rank: int, path: str | os.PathLike[str]) -> None:
    """Rename the last healthy checkpoint, while a finding is open, before another one is written under its name.

    Raises:
        OSError: it cannot be renamed.
        TraceError: the run cannot be read.
    """
    whole = Path(os.path.abspath(path))
    if whole not in needed_checkpoints(run_dir):
        return
    trace = Trace(run_dir)
    healthy = last_healthy(judge_checkpoints(trace, recorded_onsets(trace.findings())))
    if healthy is None or healthy.path != str(whole):
        return  # it has been set aside before
    kept = whole.with_name(f"kept-{healthy.step}-{whole.name}")
    os.replace(whole, kept)
    note_checkpoint(run_dir, rank, healthy.step, kept)
    log.warning("%s is kept as %s: it is the last healthy checkpoint, and a finding is open", whole, kept.name)
