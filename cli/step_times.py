"""How long the phases of a run's steps took."""

from __future__ import annotations

import pandas as pd

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.profiler.phases import WAITS, phases_of

WITHIN = ("hook", "collective")
"""What the hook itself takes and what is waited for other ranks, within the phases."""

ON_DEVICE = ("copy", "forward", "backward", "optimizer", "collective")
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
    measured = ("duration", "data", *WAITS, "forward", "backward", "optimizer", *WITHIN)
    columns = ["step", "time_ns", *(f"{name}_ns" for name in measured), "samples", "loader_workers"]
    rows = trace.table("steps", columns=columns, ranks=[rank], modes=["TRAIN", "GLOBAL"]).to_pandas()
    rows = rows[rows["duration_ns"].fillna(0) > 0]
    times = {name: rows[f"{name}_ns"].fillna(0) / 1e6 for name in measured}
    found = pd.DataFrame({"step": rows["step"], **times, **phases_of(times)})
    found["end_ns"] = rows["time_ns"] + ((times["duration"] - times["data"]) * 1e6).astype("int64")
    found["samples"] = rows["samples"].fillna(0)
    found["workers"] = rows["loader_workers"]
    return found
