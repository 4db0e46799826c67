"""What there is to say of a run in one screen."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stepwatch.cli.profile import profile
from stepwatch.cli.profiles import about_json
from stepwatch.probe.store.labels import is_baseline, read_labels
from stepwatch.probe.store.profiles import profiles_of
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import INTERVAL_SCALAR, STAT_COLUMNS


def summarise(trace: Trace, pattern: re.Pattern[str]) -> dict[str, Any]:
    """JSON-compatible summary; tensors are those whose name ``pattern`` finds, with their last statistics."""
    info = trace.info
    labels = read_labels(trace.source)
    columns = ["step", "mode", "time_ns", "duration_ns", "hook_ns", "saved"]
    steps = trace.table("steps", columns=columns, modes=["TRAIN", "GLOBAL"])
    durations = steps["duration_ns"].drop_null().to_numpy()
    median = float(np.median(durations)) if len(durations) else 0.0
    first_rank = trace.ranks[:1]
    return {
        "run": str(trace.path),
        "job_name": info.job_name,
        "tags": list(labels.tags),
        "note": labels.note,
        "baseline": is_baseline(trace.source),
        "run_id": info.run_id,
        "host": info.host,
        "world_size": info.world_size,
        "command": list(info.command),
        "versions": info.versions,
        "start_ns": info.start_ns,
        "state": state_of(trace),
        "seconds": _seconds(trace, steps["time_ns"].to_numpy()),
        "steps": len(np.unique(steps["step"].to_numpy())),
        "steps_per_second": 1e9 / median if median else None,
        "hook": _hook_cost(trace, steps),
        "profile": profile(trace),
        "profiled": [about_json(each) for each in profiles_of(trace.path)],
        "series": _series(trace, first_rank),
        "tensors": _tensors(trace, first_rank, pattern),
        "findings": trace.findings(),
        "notes": trace.notes,
        "warnings": list(trace.warnings),
        "counters": trace.counters,
    }


def _hook_cost(trace: Trace, steps: pa.Table) -> dict[str, Any]:
    """What recording cost, and how often tensors were saved; ``interval`` is the governor's last, or None."""
    known = steps.filter(pc.and_(pc.is_valid(steps["hook_ns"]), pc.is_valid(steps["duration_ns"])))
    own, whole = (known[column].to_numpy().astype(float) for column in ("hook_ns", "duration_ns"))
    chosen = trace.table("scalars", columns=["step", "value"], names=[INTERVAL_SCALAR], ranks=trace.ranks[:1])
    intervals = chosen.sort_by("step")["value"].to_pylist()
    return {
        "microseconds_per_step": float(np.mean(own)) / 1e3 if len(own) else None,
        "share_of_step": float(own.sum() / whole.sum()) if whole.sum() else None,
        "saved_steps": len(pc.unique(steps.filter(steps["saved"])["step"])),
        "interval": int(intervals[-1]) if intervals else None,
        "overhead_budget": trace.info.config.get("overhead_budget"),
    }


def _seconds(trace: Trace, times: NDArray[np.int64]) -> float:
    """From the first start to the end, or to the last training step where it did not say how it ended."""
    ends = [end.time_ns for rank in trace.ranks if (end := trace.end(rank)) is not None]
    last = max([trace.info.start_ns, *ends, *times[-1:].tolist()])
    return float(last - trace.info.start_ns) / 1e9


def state_of(trace: Trace) -> str:
    """How the run stands, in words."""
    if trace.live():
        return "live"
    ends = [end for rank in trace.ranks if (end := trace.end(rank)) is not None]
    if ends:
        worst = max(ends, key=lambda end: end.status != "finished")
        after = f" after {worst.last_step} steps" if worst.last_step is not None else ""
        return f"{worst.status}{after}" + (f": {worst.reason}" if worst.reason else "")
    return "killed (it did not say how it ended)"


def _series(trace: Trace, ranks: list[int]) -> dict[str, Any]:
    rows = trace.table("scalars", columns=["name", "mode", "step", "value"], ranks=ranks).to_pandas()
    found = {}
    for (name, mode), group in rows.groupby(["name", "mode"], sort=False):
        key = name if name not in found else f"{name} ({mode})"
        found[key] = {"mode": mode, "steps": group["step"].tolist(), "values": group["value"].tolist()}
    return found


def _tensors(trace: Trace, ranks: list[int], pattern: re.Pattern[str]) -> list[dict[str, Any]]:
    described = trace.tensors()
    saved = trace.table("steps", columns=["step", "saved", "mode"], ranks=ranks).to_pandas()
    saved = saved[saved["saved"].fillna(False).astype(bool)]
    training = saved[saved["mode"].isin(["TRAIN", "GLOBAL"])]
    saved = saved if training.empty else training
    if saved.empty:
        return []
    # Different collections may have been saved at different steps; the last few cover them.
    since = int(saved["step"].iloc[-10:].min())
    rows = trace.whole_stats(steps=(since, None)).select(["step", "rank", "name", *STAT_COLUMNS]).to_pandas()
    last = rows.sort_values(["step", "rank"], ascending=[True, False], kind="stable").drop_duplicates(
        "name", keep="last"
    )
    found = []
    for row in last.drop(columns="rank").to_dict("records"):
        if pattern.search(row["name"]):
            tensor = described.get(row["name"])
            found.append({**row, "shape": list(tensor.shape) if tensor else [], "order": tensor.order if tensor else 0})
    return sorted(found, key=lambda row: (row["name"].startswith("gradient/"), row["order"]))
