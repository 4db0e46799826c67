"""Where a run's time went and what its machine did, in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stepwatch.probe.store.follower import NodeCursor
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import FLOPS_SCALAR, PEAK_SECONDS_SCALAR, TOKENS_SCALAR

PHASES = ("loader", "checkpoint", "data", "forward", "backward", "optimizer", "other")
"""They add up to a step; ``data`` is what passes before the forward pass beside the loader and checkpoints."""

WITHIN = ("hook", "collective")
"""What the hook itself takes and what is waited for other ranks, within the phases."""

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

_OUTLIERS = 5
_OUTLIER_FACTOR = 2.0


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
        "outliers": [] if first is None else outliers(first),
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


def _spread(values: pd.Series) -> dict[str, float]:
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"mean_ms": float(values.mean()), "p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}


def shares(times: pd.DataFrame) -> dict[str, float]:
    """Share of the steps' time by phase."""
    return {phase: share_of(times, phase) for phase in PHASES}


def share_of(times: pd.DataFrame, name: str) -> float:
    """Share of the steps' time that is in this column."""
    return float(times[name].sum()) / float(times["duration"].sum())


def outliers(times: pd.DataFrame) -> list[dict[str, Any]]:
    """The slowest steps that take more than twice the median, after the first: which phase took how much longer."""
    usual = times[list(PHASES)].median()
    median = float(times["duration"].median())
    slow = times.iloc[1:].nlargest(_OUTLIERS, "duration")
    found = []
    for _, row in slow[slow["duration"] > _OUTLIER_FACTOR * median].iterrows():
        excess = {phase: float(row[phase] - usual[phase]) for phase in PHASES}
        phase = max(excess, key=excess.__getitem__)
        found.append(
            {
                "step": int(row["step"]),
                "duration_ms": float(row["duration"]),
                "median_ms": median,
                "phase": phase,
                "excess_ms": excess[phase],
            }
        )
    return found


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


Series = dict[tuple[str, str, str], tuple[NDArray[np.int64], NDArray[np.float64]]]
"""(times in ns, values) by (node, device, metric)."""


def series_of(trace: Trace, metrics: Sequence[str]) -> Series:
    """Every series of these metrics; devices, and the metrics of each, in order of first appearance."""
    wanted = pa.array(list(metrics))
    parts: dict[tuple[str, str, str], list[tuple[NDArray[np.int64], NDArray[np.float64]]]] = {}
    for node in trace.nodes:
        for piece in NodeCursor(trace, node).read():
            rows = piece.combine_chunks()
            device, metric = rows["device"].chunk(0), rows["metric"].chunk(0)
            chosen = pc.is_in(metric.dictionary, wanted).to_numpy(zero_copy_only=False)[metric.indices.to_numpy()]
            names = metric.dictionary.to_pylist()
            codes = (device.indices.to_numpy() * len(names) + metric.indices.to_numpy())[chosen]
            if not len(codes):
                continue
            order = np.argsort(codes.astype(np.min_scalar_type(codes.max())), kind="stable")  # 16 bits: in one pass
            ordered = codes[order]
            times, values = (rows[name].to_numpy()[chosen][order] for name in ("time_ns", "value"))
            bounds = [0, *(np.flatnonzero(np.diff(ordered)) + 1), len(ordered)]
            devices = device.dictionary.to_pylist()
            for start, end in pairwise(bounds):
                place, number = divmod(int(ordered[start]), len(names))
                key = (node, devices[place], names[number])
                parts.setdefault(key, []).append((times[start:end], values[start:end]))
    places: dict[str, int] = {}
    for _, name, _ in parts:
        places.setdefault(name, len(places))
    return {
        key: (np.concatenate([times for times, _ in parts[key]]), np.concatenate([values for _, values in parts[key]]))
        for key in sorted(parts, key=lambda key: (key[0], places[key[1]]))
    }
