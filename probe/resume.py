"""Where a job stands when its hook starts: its rank, and the steps it has done in earlier attempts."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.suspects import judge_checkpoints, last_healthy, recorded_onsets, resumed_from_suspect

log = logging.getLogger("stepwatch")


def process_rank() -> tuple[int, int]:
    """(rank, world size) of this process, from torch.distributed or the launcher's environment."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    for rank, size in (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def steps_done(optimizer: torch.optim.Optimizer) -> int | None:
    """Steps an optimizer has done by its own count; 0 for a fresh one, None where it does not count.

    Adam and its relatives count per parameter; SGD with momentum has state but no count.
    """
    counts = [float(state["step"]) for state in optimizer.state.values() if "step" in state]
    if counts:
        return int(max(counts))
    return None if optimizer.state else 0


def first_step(optimizer: torch.optim.Optimizer | None, run_dir: Path, rank: int) -> int:
    """The global step at which this attempt begins.

    It is the optimizer's own count. An optimizer that was restored but does not count leaves one guess:
    the job goes on where the recording of the attempt before ended.
    """
    done = 0 if optimizer is None else steps_done(optimizer)
    return _recorded_steps(run_dir, rank) if done is None else done


def warn_of_suspect(run_dir: Path, step: int) -> str:
    """Log, and return, that the attempt that begins at this step goes on from a suspect checkpoint.

    "" where no recorded finding makes it suspect, or where that cannot be told.
    """
    if not step:
        return ""
    try:
        trace = Trace(run_dir)
        troubles = recorded_onsets(trace.findings())
        said = resumed_from_suspect(trace, troubles, step) if troubles else ""
        healthy = last_healthy(judge_checkpoints(trace, troubles)) if said else None
    except (TraceError, OSError):
        return ""
    if said:
        said += f"; the last healthy one: {healthy.path}, step {healthy.step}" if healthy else "; none is healthy"
        log.warning("%s: %s", run_dir, said)
    return said


def _recorded_steps(run_dir: Path, rank: int) -> int:
    try:
        recorded = Trace(run_dir).table("steps", columns=["step", "mode"], ranks=[rank])
    except TraceError:
        return 0
    steps = [row["step"] for row in recorded.to_pylist() if row["mode"] in ("TRAIN", "GLOBAL")]
    return max(steps) + 1 if steps else 0
