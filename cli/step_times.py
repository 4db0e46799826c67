"""How long the phases of a run's steps took."""

from __future__ import annotations

import pandas as pd

from stepwatch.probe.store.reader import Trace

PHASES = ("loader", "checkpoint", "data", "forward", "backward", "optimizer", "other")
"""They add up to a step; ``data`` is what passes before the forward pass beside the loader and checkpoints."""

WITHIN = ("hook", "collective")
"""What the hook itself takes and what is waited for other ranks, within the phases."""

ON_DEVICE = ("forward", "backward", "optimizer", "collective")
"""Phases that devices tell of themselves, in some steps."""


def device_times(trace: Trace, rank: int) -> pd.DataFrame:
    """Milliseconds of each of :data:`ON_DEVICE` on the device of a rank, of the training steps in which it told them.

    NaN where a step had no such phase.
    """
    columns = [f"device_{phase}_ns" for phase in ON_DEVICE]
    rows = trace.table("steps", columns=columns, ranks=[rank], modes=["TRAIN", "GLOBAL"]).to_pandas()
    found = pd.DataFrame({phase: rows[column] / 1e6 for phase, column in zip(ON_DEVICE, columns, strict=True)})
    return found.dropna(how="all")


def step_times(trace: Trace, rank: int) -> pd.DataFrame:
    """Milliseconds of each phase of a rank's training steps, in recorded order.

    Columns: ``step``, ``duration``, :data:`PHASES`, ``hook`` and ``collective`` (waiting for other ranks), which are
    part of the phases in which they are, ``samples``, ``workers``, ``end_ns``.
    """
    columns = ["step", "time_ns", "duration_ns", "data_ns", "loader_ns", "checkpoint_ns", "forward_ns", "backward_ns"]
    columns += ["optimizer_ns", *(f"{name}_ns" for name in WITHIN), "samples", "loader_workers"]
    rows = trace.table("steps", columns=columns, ranks=[rank], modes=["TRAIN", "GLOBAL"]).to_pandas()
    rows = rows[rows["duration_ns"].fillna(0) > 0]
    found = pd.DataFrame({"step": rows["step"]})
    for name in ("duration", "data", "loader", "checkpoint", "forward", "backward", "optimizer", *WITHIN):
        found[name] = rows[f"{name}_ns"].fillna(0) / 1e6
    found["other"] = (found["duration"] - found[["data", "forward", "backward", "optimizer"]].sum(axis=1)).clip(lower=0)
    found["end_ns"] = rows["time_ns"] + ((found["duration"] - found["data"]) * 1e6).astype("int64")
    found["data"] = (found["data"] - found["loader"] - found["checkpoint"]).clip(lower=0)
    found["samples"] = rows["samples"].fillna(0)
    found["workers"] = rows["loader_workers"]
    return found
