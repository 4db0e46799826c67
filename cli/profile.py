"""Where a run's time went and what its machine did, in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from stepwatch.cli.outliers import outliers
from stepwatch.cli.series import series_of
from stepwatch.cli.step_times import WITHIN, device_times, step_times
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import FLOPS_SCALAR, PEAK_SECONDS_SCALAR, TOKENS_SCALAR
from stepwatch.rules.profiler.phases import PHASES

DEVICE_METRICS = {
    "cpu_percent": "%",
    "memory_percent": "%",
    "iowait_percent": "%",
    "utilization_percent": "%",
    "memory_used_bytes": "bytes",
    "memory_rss_bytes": "bytes",
    "power_watts": "W",
    "temperature_celsius": "°C",
    "disk_read_bytes_per_s": "bytes/s",
    "disk_write_bytes_per_s": "bytes/s",
    "network_receive_bytes_per_s": "bytes/s",
    "network_send_bytes_per_s": "bytes/s",
    "busy_percent": "%",
    "throttled_percent": "%",
}
"""Metrics that a summary tells, and their units."""


def profile(trace: Trace) -> dict[str, Any]:
    """JSON-compatible: the job's time, phases by rank, outliers, data loading, and use of the devices by node."""
    return {**time_profile(trace), "devices": devices(trace)}


def time_profile(trace: Trace) -> dict[str, Any]:
    """The same without the devices."""
    by_rank = {rank: step_times(trace, rank) for rank in trace.ranks}
    by_rank = {rank: times for rank, times in by_rank.items() if len(times)}
    first = next(iter(by_rank.values()), None)
    return {
        "seconds": _seconds(trace, first),
        "ranks": {
            str(rank): {name: _spread(times[name]) for name in ("duration", *PHASES, *WITHIN)}
            for rank, times in by_rank.items()
        },
        "shares": {str(rank): shares(times) for rank, times in by_rank.items()},
        "collectives": {str(rank): share_of(times, "collective") for rank, times in by_rank.items()},
        "on_device": {str(rank): spread for rank in by_rank if (spread := _on_device(trace, rank))},
        "outliers": outliers(trace, by_rank),
        "loading": None if first is None else loading(first),
        "throughput": throughput(trace, by_rank),
    }


def throughput(trace: Trace, by_rank: Mapping[int, pd.DataFrame]) -> dict[str, float]:
    """What all ranks together do in a second of their usual (median) training steps, where it is known.

    ``samples_per_second`` from the batches of DataLoaders; ``tokens_per_second`` and ``flops_per_second`` from the
    one step of each rank in which they were counted; ``flops_utilization``, what these are of what the devices could
    do at best, 0 to 1.
    """
    names = {FLOPS_SCALAR: "flops", TOKENS_SCALAR: "tokens", PEAK_SECONDS_SCALAR: "seconds_at_peak"}
    rows = trace.table("scalars", columns=["name", "value"], names=list(names)).to_pandas()
    counted = rows.groupby(["rank", "name"])["value"].last()
    rates: dict[str, list[float]] = {}
    for rank, times in by_rank.items():
        seconds = float(times["duration"].median()) / 1e3
        if times["samples"].any():
            rates.setdefault("samples", []).append(float(times["samples"].median()) / seconds)
        for scalar, name in names.items():
            if (rank, scalar) in counted.index:
                rates.setdefault(name, []).append(float(counted[rank, scalar]) / seconds)
    found = {f"{name}_per_second": sum(rates[name]) for name in ("samples", "tokens", "flops") if name in rates}
    if "seconds_at_peak" in rates:
        found["flops_utilization"] = float(np.mean(rates["seconds_at_peak"]))
    return found


def _seconds(trace: Trace, times: pd.DataFrame | None) -> dict[str, float]:
    """How long the lowest rank started up, trained, evaluated, and did something else, in seconds."""
    start = trace.info.start_ns
    ends = [end.time_ns for rank in trace.ranks if (end := trace.end(rank)) is not None]
    if times is None:
        return {"total": (max(ends, default=start) - start) / 1e9}
    rows = trace.table("steps", columns=["duration_ns"], ranks=trace.ranks[:1], modes=["EVAL", "PREDICT"])
    evaluation = (pc.sum(rows["duration_ns"]).as_py() or 0) / 1e9
    first = int(times["end_ns"].iloc[0] - 1e6 * times["duration"].iloc[0])
    last = int(times["end_ns"].max())
    training = float(times["duration"].sum()) / 1e3
    total = (max([*ends, last]) - start) / 1e9
    before, after = max(first - start, 0) / 1e9, total - (last - start) / 1e9
    return {
        "total": total,
        "before_first_step": before,
        "training": training,
        "evaluation": evaluation,
        "after_last_step": after,
        "between_steps": max(total - before - after - training - evaluation, 0.0),
    }


def _on_device(trace: Trace, rank: int) -> dict[str, dict[str, float]]:
    times = device_times(trace, rank)
    return {str(phase): _spread(told) for phase in times if len(told := times[phase].dropna())}


def _spread(values: pd.Series) -> dict[str, float]:
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"mean_ms": float(values.mean()), "p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}


def shares(times: pd.DataFrame) -> dict[str, float]:
    """Share of the steps' time by phase."""
    return {phase: share_of(times, phase) for phase in PHASES}


def share_of(times: pd.DataFrame, name: str) -> float:
    """Share of the steps' time that is in this column."""
    return float(times[name].sum()) / float(times["duration"].sum())


def loading(times: pd.DataFrame) -> dict[str, Any] | None:
    """How the data loader kept up, and the workers that would do; None where none was used."""
    known = times["workers"].dropna()
    if not len(known):
        return None
    workers = int(known.iloc[-1])
    period, wait = float(times["duration"].iloc[1:].mean()), float(times["loader"].iloc[1:].mean())
    if not period > 0:
        return None
    per_batch = workers * period if workers and wait > 0.1 * period else wait
    working = max(period - wait, 1e-3)
    return {
        "workers": workers,
        "wait_share": wait / period,
        "samples_per_second": float(times["samples"].sum() / max(times["duration"].sum(), 1e-9) * 1e3),
        "workers_needed": max(math.ceil(per_batch / working), 1) if wait > 0.1 * period else workers,
    }


def devices(trace: Trace) -> dict[str, dict[str, dict[str, Any]]]:
    """By node and "device metric": maximum, percentiles and minimum."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (node, device, metric), (_, values) in series_of(trace, list(DEVICE_METRICS)).items():
        if device.startswith("core:"):
            continue
        p99, p95, p50 = (float(p) for p in np.percentile(values, (99, 95, 50)))
        found.setdefault(node, {})[f"{device} {metric}"] = {
            "unit": DEVICE_METRICS[metric],
            "max": float(values.max()),
            "p99": p99,
            "p95": p95,
            "p50": p50,
            "min": float(values.min()),
        }
    return found
