"""Turns traces of torch.profiler into a run: its steps, and beside them the summary of each rank."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.kineto.parsing import KinetoTrace, is_kineto, read_kineto
from stepwatch.probe.store.kineto.steps import StepTimes
from stepwatch.probe.store.kineto.summary import Summary, summarise
from stepwatch.probe.store.layout import end_file, write_json
from stepwatch.probe.store.profiles import Profile
from stepwatch.probe.store.rankfile import read_json
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter

_UNMARKED = (
    "the trace marks no steps: the profiler was used without a schedule, or without calling its step(); "
    "what is told is of all of it"
)


def kineto_files(source: Path) -> list[Path]:
    """The traces that a path stands for: itself, or those in a directory; none where it is something else."""
    if source.is_dir():
        names = ("*.json", "*.json.gz")
        return sorted(path for name in names for path in source.glob(name) if is_kineto(path))
    return [source] if source.is_file() and is_kineto(source) else []


def import_kineto(files: Sequence[Path], run: Path) -> list[Summary]:
    """Write traces, one of each rank, as a run; returns their summaries by rank.

    The traces stay where they are; the run says where that is.

    Raises:
        TraceError: a file that is not such a trace, several of one rank, or a directory that holds something.
        OSError: a file cannot be read, or the run cannot be written.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise TraceError(f"{run}: holds something already; expected a new directory")
    found: dict[int, tuple[Path, Summary]] = {}
    world_size = len(files)
    for file in files:
        trace = read_kineto(file)
        rank = _rank_of(trace, len(found))
        if rank in found:
            raise TraceError(f"{file} and {found[rank][0]} are both of rank {rank}; expected one trace of each rank")
        found[rank] = (file, summarise(trace, rank))
        world_size = max(world_size, trace.world_size or 0, rank + 1)
    started = min(summary.base_ns + summary.start_ns for _, summary in found.values())
    for rank, (file, summary) in sorted(found.items()):
        _write(run, rank, world_size, started, file, summary)
    return [summary for _, (_, summary) in sorted(found.items())]


def _rank_of(trace: KinetoTrace, place: int) -> int:
    """As the trace says; of a job without a process group, its place among the files."""
    return place if trace.rank is None else trace.rank


def _write(run: Path, rank: int, world_size: int, started: int, file: Path, summary: Summary) -> None:
    first = summary.steps[0].number if summary.steps else 0
    about = {
        "command": [],
        "world_size": world_size,
        "start_ns": started,
        "config": {"imported": str(file.resolve())},
    }
    writer = TraceWriter(run, rank=rank, run_info=about)
    if not summary.steps:
        writer.note(_UNMARKED)
    for place, step in enumerate(summary.steps):
        while not writer.submit(_record(step, place, summary.base_ns)):
            time.sleep(0.01)  # the queue is full
    profile = Profile(run, rank, first, len(summary.steps), "import", "", source=str(file.resolve()))
    profile.prepare()
    profile.keep_summary(summary)
    profile.publish()
    writer.close("finished", last_step=summary.steps[-1].number if summary.steps else None)
    end = end_file(run, rank)
    write_json(end, {**read_json(end), "time_ns": summary.base_ns + summary.start_ns + summary.span_ns})


def _record(step: StepTimes, place: int, base_ns: int) -> StepRecord:
    timing = {
        "duration_ns": step.duration_ns,
        "data_ns": step.data_ns,
        "loader_ns": step.loader_ns,
        "forward_ns": step.forward_ns,
        "backward_ns": step.backward_ns,
        "optimizer_ns": step.optimizer_ns,
    }
    return StepRecord(step.number, "TRAIN", place, base_ns + step.start_ns + step.data_ns, timing=timing)
