"""The slowest steps of a run, and what happened in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stepwatch.cli.series import Series, series_of
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.profiler.phases import PHASES

_OUTLIERS = 5
_FACTOR = 2.0
_AROUND_NS = 1_000_000_000
_ABOVE_PERCENT = 25.0
_MACHINE = {
    "cpu_percent": "the processors were used",
    "iowait_percent": "the processors waited for storage",
    "pressure_memory_some_percent": "work stood still for want of memory",
    "pressure_io_some_percent": "work stood still for storage",
    "throttled_percent": "the container was held back",
}
"""Metrics of a node or its container that are told where they are far above what is usual."""


def outliers(trace: Trace, by_rank: Mapping[int, pd.DataFrame]) -> list[dict[str, Any]]:
    """The slowest steps of the lowest rank that take more than twice the median, after the first.

    Args:
        trace: the run.
        by_rank: :func:`stepwatch.cli.profile.step_times` of each rank, none of them empty.

    Returns:
        JSON-compatible: ``step``, ``duration_ms``, ``median_ms``, ``phase`` that took most of the excess, its
        ``excess_ms``, and ``happened``: what else is known of that time, in words.
    """
    if not by_rank:
        return []
    rank, times = next(iter(by_rank.items()))
    usual = times[[*PHASES, "hook", "collective"]].median()
    median = float(times["duration"].median())
    slow = times.iloc[1:].nlargest(_OUTLIERS, "duration")
    slow = slow[slow["duration"] > _FACTOR * median]
    if slow.empty:
        return []
    machine = series_of(trace, list(_MACHINE))
    passes = trace.table("steps", columns=["time_ns"], ranks=[rank], modes=["EVAL", "PREDICT"])["time_ns"].to_numpy()
    found = []
    for _, row in slow.iterrows():
        excess = {phase: float(row[phase] - usual[phase]) for phase in PHASES}
        phase = max(excess, key=excess.__getitem__)
        end = int(row["end_ns"])
        begin = end - int(1e6 * row["duration"])
        happened = []
        if ((passes >= begin) & (passes < end)).any():
            happened.append("an evaluation ran")
        if row["hook"] - usual["hook"] > 0.2 * (row["duration"] - median):
            happened.append(f"the hook took {row['hook']:.3g} ms to save")
        if row["collective"] - usual["collective"] > 0.5 * (row["duration"] - median):
            happened.append(_waiting(by_rank, rank, int(row["step"])))
        happened += _readings(machine, begin - _AROUND_NS, end + _AROUND_NS)
        found.append(
            {
                "step": int(row["step"]),
                "duration_ms": float(row["duration"]),
                "median_ms": median,
                "phase": phase,
                "excess_ms": excess[phase],
                "happened": happened,
            }
        )
    return found


def _waiting(by_rank: Mapping[int, pd.DataFrame], rank: int, step: int) -> str:
    waited = {
        other: float(times.loc[times["step"] == step, "collective"].iloc[-1])
        for other, times in by_rank.items()
        if (times["step"] == step).any()
    }
    last = min(waited, key=waited.__getitem__)
    return f"it waited for rank {last}" if last != rank else "it waited in a collective"


def _readings(machine: Series, begin: int, end: int) -> list[str]:
    """What was far above its median around that time."""
    found = []
    for (_, device, metric), (times, values) in machine.items():
        inside = values[(times >= begin) & (times <= end)]
        usual = float(np.median(values))
        if device in ("node", "cgroup") and len(inside) and inside.max() > usual + _ABOVE_PERCENT:
            found.append(f"{_MACHINE[metric]} {inside.max():.0f} % ({usual:.0f} % usually)")
    return found
