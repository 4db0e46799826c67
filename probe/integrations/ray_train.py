"""Ray Train: record a job of several workers, and end it in Ray's way when a rule asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import train

from stepwatch.probe.hook import Hook
from stepwatch.probe.integrations.leaving import checked_directory, leaving


@contextmanager
def recording(
    out_dir: str, *, save: Callable[[int], str | os.PathLike[str] | None] | None = None, **options: Any
) -> Iterator[Hook]:
    """A hook for the training function of a ``TorchTrainer``; to be used in each of its workers.

    When a rule or ``stepwatch stop`` asks for it, all workers leave the block after the same step, and the function
    goes on behind it, so that the job ends as one that has finished. With ``save`` the checkpoint is then reported to
    Ray with the metrics ``stepwatch_stopped`` (the reason) and ``step``. Workers that Ray restarts continue the run.

    Args:
        out_dir: absolute path or URL of the run, which all workers reach.
        save: called with the step before the stop, on every worker; returns the directory that it wrote, or
            None on workers that write nothing.
        options: further arguments of :class:`stepwatch.probe.Hook`; ``rules`` is "recommended" and ``actions``
            ``["stop"]`` by default.

    Raises:
        ValueError: the path is not absolute: each worker of Ray's has a directory of its own.
    """
    saved: dict[str, Any] = {}

    def checkpoint(step: int) -> Path | None:
        folder = save(step) if save is not None else None
        saved.update(step=step, folder=folder)
        return Path(folder) if folder is not None else None

    def report(reason: str) -> None:
        """Every worker reports, as Ray wants it; what they have saved is one checkpoint."""
        if save is not None:
            folder = saved["folder"]
            kept = train.Checkpoint.from_directory(folder) if folder is not None else None
            train.report({"stepwatch_stopped": reason, "step": saved["step"]}, checkpoint=kept)

    with leaving(checked_directory(out_dir), {"checkpoint": checkpoint, **options}, report) as hook:
        yield hook
