"""Steps of a trace, and the phases of each as far as they can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.kineto.intervals import Intervals, Times
from stepwatch.probe.store.kineto.parsing import HOST, KinetoTrace

_STEP = re.compile(r"^ProfilerStep#(\d{1,18})$")
_LOADER = re.compile(r"DataLoader.*__next__")
_UPDATE = re.compile(r"^Optimizer\.step#")
_RESET = re.compile(r"^Optimizer\.zero_grad#")
_ENGINE = re.compile(r"^autograd::engine::evaluate_function: ")
_NAMED = {phase: re.compile(rf"^\W*{phase}(?:_pass)?\W*$", re.IGNORECASE) for phase in ("forward", "backward")}


@dataclass(frozen=True)
class StepTimes:
    """Host times of a step, in nanoseconds.

    Attributes:
        number: of the step, as it was annotated.
        start_ns: since the trace's time 0.
        duration_ns: all of it.
        data_ns: before its first forward pass.
        loader_ns: of it, waiting for a DataLoader.
        forward_ns: from the first operator behind the batch to the last before the backward pass: the forward pass,
            the loss, and moving the batch; or what the script has annotated as ``forward``.
        backward_ns: from the first to the last of autograd's nodes, or what is annotated as ``backward``.
        optimizer_ns: inside the optimizer's step.
        operators_ns: of the training thread, inside any operator or call of the device's runtime; the rest is Python.
        device_ns: with anything on a device.
    """

    number: int
    start_ns: int
    duration_ns: int
    data_ns: int
    loader_ns: int
    forward_ns: int
    backward_ns: int
    optimizer_ns: int
    operators_ns: int
    device_ns: int


def step_times(trace: KinetoTrace) -> list[StepTimes]:
    """The steps that were annotated (``ProfilerStep#N``, as torch.profiler does with a schedule), in order of time."""
    host = trace.host
    annotated = np.flatnonzero(_having(trace, _STEP))
    if not len(annotated):
        return []
    starts, ends = host.start[annotated], host.end[annotated]
    numbers = [int(trace.names[name].partition("#")[2]) for name in host.name[annotated]]
    in_thread = np.isin(host.thread, host.thread[annotated])
    calls = np.isin(host.category, [code for code, kind in enumerate(HOST) if kind != "user_annotation"])
    loader = _intervals(trace, _having(trace, _LOADER) & in_thread)
    update = _intervals(trace, _having(trace, _UPDATE) & in_thread)
    reset = _intervals(trace, _having(trace, _RESET) & in_thread)
    working = _intervals(trace, calls & in_thread)
    engine = _intervals(trace, _having(trace, _ENGINE))
    inside = (loader | update | reset | engine).within(host.start, host.end) > 0
    rest = host.start[calls & in_thread & ~inside], host.end[calls & in_thread & ~inside]
    backward = _intervals(trace, _having(trace, _NAMED["backward"]) & in_thread)
    if not len(backward.starts):
        backward = _hulls(engine, rest[0])
    forward = _intervals(trace, _having(trace, _NAMED["forward"]) & in_thread)
    if not len(forward.starts):
        marks = np.sort(np.r_[starts, loader.ends, update.ends, backward.ends])
        untrained = backward.within(starts, ends) == 0
        forward = _hulls_before(np.sort(np.r_[backward.starts, ends[untrained]]), *rest, marks)
    device = Intervals.of(trace.device.start, trace.device.end)
    phases = (loader, forward, backward, update, working, device)
    columns = [part.within(starts, ends).tolist() for part in phases]
    first = np.searchsorted(forward.starts, starts, "left")
    begins = np.minimum(np.r_[forward.starts, ends[-1:]][first], ends)
    return [
        StepTimes(number, int(start), int(end - start), int(begin - start), *times)
        for number, start, end, begin, *times in zip(numbers, starts, ends, begins, *columns, strict=True)
    ]


def _having(trace: KinetoTrace, pattern: re.Pattern[str]) -> NDArray[np.bool_]:
    """Which host events have a name like that."""
    named = np.fromiter((bool(pattern.search(name)) for name in trace.names), bool, len(trace.names))
    return named[trace.host.name] if len(named) else np.zeros(len(trace.host.name), bool)


def _intervals(trace: KinetoTrace, which: NDArray[np.bool_]) -> Intervals:
    return Intervals.of(trace.host.start[which], trace.host.end[which])


def _hulls(parts: Intervals, breaks: Times) -> Intervals:
    """Joined across gaps into which no break falls."""
    if not len(parts.starts):
        return parts
    before_gap = np.searchsorted(breaks, parts.ends[:-1], "left")
    behind_gap = np.searchsorted(breaks, parts.starts[1:], "left")
    first = np.flatnonzero(np.r_[True, behind_gap > before_gap])
    return Intervals(parts.starts[first], parts.ends[np.r_[first[1:] - 1, len(parts.starts) - 1]])


def _hulls_before(times: Times, starts: Times, ends: Times, marks: Times) -> Intervals:
    """For each time what the operators (``starts``, ``ends``) between the latest mark before it and it span."""
    since = marks[np.maximum(np.searchsorted(marks, times, "left") - 1, 0)]
    first, behind = np.searchsorted(starts, since, "left"), np.searchsorted(starts, times, "left")
    some = first < behind
    reach = np.maximum.accumulate(ends)
    return Intervals(starts[first[some]], reach[behind[some] - 1])
