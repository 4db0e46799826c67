"""A run as a trace of Chrome's format, for Perfetto and chrome://tracing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepwatch.cli.report.downsample import keep_extremes
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import TIMING_COLUMNS
from stepwatch.rules.finding import Finding

POINTS = 5000
"""Points of a counter, at most; lowest and highest values of each stretch are kept."""

_NODES_FROM = 1_000_000
_STEPS, _EVALUATIONS = 1, 2

Event = dict[str, Any]


def export_chrome(trace: Trace, path: Path, findings: Sequence[Finding], ranks: Sequence[int] | None = None) -> int:
    """Write steps, phases, counters and findings; returns the number of events.

    A rank is a process of the trace, with its training steps on one track and evaluations on another; a node is a
    process with a counter per metric. Phases of a step stand in their order; what is left of the step beside them is
    the gap before the backward pass. Times are microseconds since the run began.

    Args:
        trace: the run.
        path: the file; one whose name ends in ``.gz`` is compressed.
        findings: what rules found, as marks.
        ranks: ranks that are written, all where None.

    Raises:
        TraceError: a rank has recorded nothing.
    """
    chosen = trace.ranks if ranks is None else list(ranks)
    for rank in chosen:
        if rank not in trace.ranks:
            raise TraceError(f"{trace.path}: rank {rank} has recorded nothing; there are {trace.ranks}")
    count = 0
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        for event in _events(trace, chosen, findings):
            file.write((",\n" if count else "") + json.dumps(event))
            count += 1
        file.write("\n]}\n")
    return count


def _events(trace: Trace, ranks: Sequence[int], findings: Sequence[Finding]) -> Iterator[Event]:
    start = trace.info.start_ns
    yield from _counters(trace, start)
    for rank in ranks:
        yield _name("process_name", rank, 0, f"rank {rank}")
        yield _name("thread_name", rank, _STEPS, "training steps")
        yield _name("thread_name", rank, _EVALUATIONS, "evaluations")
        ends: dict[int, float] = {}
        columns = ["step", "mode", "time_ns", "saved", *TIMING_COLUMNS]
        for row in trace.table("steps", columns=columns, ranks=[rank]).to_pylist():
            yield from _step(rank, row, start, ends)
        for finding in findings:
            if finding.rank == rank:
                yield _mark(finding, ends)


def _name(kind: str, process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _step(rank: int, row: dict[str, Any], start: int, ends: dict[int, float]) -> Iterator[Event]:
    if not row["duration_ns"]:
        return
    times = {name.removesuffix("_ns"): (row[name] or 0) / 1e3 for name in TIMING_COLUMNS if name.endswith("_ns")}
    begin = (row["time_ns"] - start) / 1e3 - times["data"]
    end = begin + times["duration"]
    training = row["mode"] in ("TRAIN", "GLOBAL")
    if training:
        ends[row["step"]] = end
    track = {"ph": "X", "pid": rank, "tid": _STEPS if training else _EVALUATIONS}
    about = {"mode": row["mode"], "saved": row["saved"], "hook_us": times["hook"]}
    if row["collective_ns"] is not None:
        about["collective_us"] = times["collective"]
    about |= {name: row[name] for name in ("samples", "loader_workers") if row[name] is not None}
    yield {**track, "name": f"step {row['step']}", "cat": "step", "ts": begin, "dur": times["duration"], "args": about}
    starts = {
        "data": begin,
        "checkpoint": begin,
        "loader": begin + times["checkpoint"],
        "copy": begin + times["data"] - times["copy"],
        "forward": begin + times["data"],
        "backward": end - times["optimizer"] - times["backward"],
        "optimizer": end - times["optimizer"],
    }
    for phase, at in starts.items():
        if times[phase]:
            yield {**track, "name": phase, "cat": "phase", "ts": at, "dur": min(times[phase], end - at)}


def _mark(finding: Finding, ends: dict[int, float]) -> Event:
    at = ends.get(finding.last_step, max(ends.values(), default=0.0))
    return {
        "ph": "i",
        "s": "g",
        "name": finding.rule,
        "cat": "finding",
        "pid": finding.rank,
        "tid": _STEPS,
        "ts": at,
        "args": {
            "severity": finding.severity.value,
            "message": finding.message,
            "suggestion": finding.suggestion,
            "steps": f"{finding.first_step} to {finding.last_step}",
        },
    }


def _counters(trace: Trace, start: int) -> Iterator[Event]:
    rows = trace.system().to_pandas()
    for number, (node, of_node) in enumerate(rows.groupby("node", sort=True)):
        process = _NODES_FROM + number
        yield _name("process_name", process, 0, f"node {node}")
        for (device, metric), series in of_node.groupby(["device", "metric"], sort=True):
            values = series["value"].to_numpy(dtype=np.float64)
            times = series["time_ns"].to_numpy()
            for index in keep_extremes(values, POINTS):
                at = (int(times[index]) - start) / 1e3
                name = f"{device} {metric}"
                yield {"ph": "C", "name": name, "pid": process, "ts": at, "args": {"value": float(values[index])}}
