"""What there is to say of a run in one screen."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stepwatch.probe.store.labels import is_baseline, read_labels
from stepwatch.probe.store.profiles import profiles_of
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import INTERVAL_SCALAR, STAT_COLUMNS


def summarise(trace: Trace, pattern: re.Pattern[str], *, with_profile: bool = True) -> dict[str, Any]:
    """JSON-compatible summary, in less than half a second also of a long run.

    Args:
        trace: the run.
        pattern: tensors are those whose name it finds, with their last statistics.
        with_profile: whether the numbers of time and machine are among it; they take most of the time.
    """
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
        **(_profile(trace) if with_profile else {}),
        "profiled": _profiled(trace),
        "learning": _learning(trace),
        "series": _series(trace, first_rank),
        "tensors": _tensors(trace, first_rank, pattern),
        "findings": trace.findings(),
        "notes": trace.notes,
        "warnings": list(trace.warnings),
        "counters": trace.counters,
    }


def _learning(trace: Trace) -> dict[str, str]:
    """What training and evaluation losses say together; ``said`` is "" where nothing can be said."""
    from stepwatch.rules.learning import learning_of

    learning = learning_of(trace)
    return {"diagnosis": learning.diagnosis, "confidence": learning.confidence, "said": learning.sentence()}


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


def _profile(trace: Trace) -> dict[str, Any]:
    from stepwatch.cli.profile import profile

    return {"profile": profile(trace)}


def _profiled(trace: Trace) -> list[dict[str, Any]]:
    found = profiles_of(trace.path)
    if not found:
        return []
    from stepwatch.cli.profiles import about_json

    return [about_json(each) for each in found]


def _series(trace: Trace, ranks: list[int]) -> dict[str, Any]:
    rows = trace.table("scalars", columns=["name", "mode", "step", "value"], ranks=ranks)
    (names, of_name), (modes, of_mode) = (_encoded(rows[column]) for column in ("name", "mode"))
    codes = of_name * max(len(modes), 1) + of_mode
    steps, values = rows["step"].to_numpy(), rows["value"].to_numpy()
    order = np.argsort(codes, kind="stable")
    present, first, counts = np.unique(codes, return_index=True, return_counts=True)
    ends = np.cumsum(counts)
    found: dict[str, Any] = {}
    for place in np.argsort(first):
        name, mode = names[present[place] // len(modes)], modes[present[place] % len(modes)]
        members = order[ends[place] - counts[place] : ends[place]]
        key = name if name not in found else f"{name} ({mode})"
        found[key] = {"mode": mode, "steps": steps[members].tolist(), "values": values[members].tolist()}
    return found


def _encoded(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """(words, the place of each row's word among them [rows])."""
    whole = column.combine_chunks()
    whole = whole if pa.types.is_dictionary(whole.type) else whole.dictionary_encode()
    return whole.dictionary.to_pylist(), whole.indices.to_numpy().astype(np.int64)


def _tensors(trace: Trace, ranks: list[int], pattern: re.Pattern[str]) -> list[dict[str, Any]]:
    described = trace.tensors()
    steps = trace.table("steps", columns=["step", "saved", "mode"], ranks=ranks)
    saved = steps.filter(pc.fill_null(steps["saved"], False))
    training = saved.filter(pc.or_(pc.equal(saved["mode"], "TRAIN"), pc.equal(saved["mode"], "GLOBAL")))
    last = (training if len(training) else saved)["step"].to_numpy()[-10:]
    if not len(last):
        return []
    # Different collections may have been saved at different steps; the last few cover them.
    rows = trace.whole_stats(steps=(int(last.min()), None)).select(["step", "rank", "name", *STAT_COLUMNS])
    rows = rows.sort_by([("step", "ascending"), ("rank", "descending")])
    names, codes = _encoded(rows["name"])
    latest = np.full(len(names), -1)
    latest[codes] = np.arange(len(codes))
    found = []
    for row in rows.take(np.sort(latest[latest >= 0])).drop_columns(["rank"]).to_pylist():
        if pattern.search(row["name"]):
            tensor = described.get(row["name"])
            found.append({**row, "shape": list(tensor.shape) if tensor else [], "order": tensor.order if tensor else 0})
    return sorted(found, key=lambda row: (row["name"].startswith("gradient/"), row["order"]))
