"""Turns what SageMaker's profiler wrote into a run: samples of the machine, and how long steps took."""

from __future__ import annotations

import hashlib
import re
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from stepwatch.probe.store.compaction import PartStore
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.layout import end_file, node_folder, write_json
from stepwatch.probe.store.rankfile import read_json
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.schema import TABLES
from stepwatch.probe.store.smdebug import exchanged
from stepwatch.probe.store.smdebug.importing import UNKNOWN_HOST
from stepwatch.probe.store.smdebug.profiler import (
    ProfilerFile,
    SystemMetric,
    TimelineEvent,
    by_moment,
    profiler_files,
    read_system_metrics,
    read_timeline,
)
from stepwatch.probe.store.writer import TraceWriter

_STEP = re.compile(r"Step:ModeKeys\.(TRAIN|EVAL|PREDICT|GLOBAL)")
_MOMENT_SECONDS = 0.02  # SageMaker's own rules take samples that are no further apart for one
_SILENT_SECONDS = 180.0  # a file of system metrics comes each minute
_PARTS = {"Forward": "forward_ns", "DataLoaderIter": "loader_ns", "DataIterator": "loader_ns"}

Row = tuple[int, str, str, float]


class ProfilerDirectory:
    """What SageMaker's profiler wrote, or is writing.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def live(self) -> bool:
        """Whether a file has come within the last minutes."""
        newest = max((file.path.stat().st_mtime for file in profiler_files(self.path)), default=0.0)
        return time.time() - newest < _SILENT_SECONDS


class ProfilerImporter:
    """Writes what comes into a directory of SageMaker's profiler as a run.

    A process of the job is a rank, in the order of its number; its steps are numbered as they began. Samples go to
    the node that they are of.

    Args:
        source: the directory.
        destination: directory of the run; made, or empty.

    Raises:
        TraceError: the destination holds something.
    """

    def __init__(self, source: Path, destination: Path) -> None:
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise TraceError(f"{destination}: holds something already; expected a new directory")
        self.directory = ProfilerDirectory(source)
        self._destination = destination
        self._read: set[Path] = set()
        self._writers: dict[str, TraceWriter] = {}
        self._steps: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._nodes: dict[str, PartStore] = {}
        self._exchanges: dict[str, list[TimelineEvent]] = defaultdict(list)

    def poll(self) -> None:
        """Write what is new.

        Raises:
            TraceError: it is damaged, or there is still nothing.
        """
        new = [file for file in profiler_files(self.directory.path) if file.path not in self._read]
        if not new and not self._read:
            raise TraceError(f"{self.directory.path}: SageMaker's profiler has written nothing there")
        metrics: list[SystemMetric] = []
        events: dict[str, list[TimelineEvent]] = defaultdict(list)
        for file in new:
            if file.kind == "system":
                metrics += read_system_metrics(file.path)
            elif file.kind in exchanged.KINDS:
                self._exchanges[file.node] += read_timeline(file.path, file.node)
            else:
                events[file.node] += read_timeline(file.path, file.node)
            self._read.add(file.path)
        if not self._writers:
            self._begin(events, metrics, new)
        write_samples(self._destination, metrics, self._nodes)
        for process in sorted(events, key=_by_number):
            writer = self._writers.get(process) or self._writer(process, _began(events, metrics, new))
            self._write_steps(writer, process, events[process])

    def finish(self) -> None:
        """No more will come: the run is over, and was when the last step ended."""
        for rank, (process, writer) in enumerate(self._writers.items()):
            writer.close("finished", last_step=max(self._steps[process] - 1, 0))
            path = end_file(self._destination, rank)
            write_json(path, {**read_json(path), "time_ns": self._ends[process]})

    def _begin(
        self, events: dict[str, list[TimelineEvent]], metrics: list[SystemMetric], files: list[ProfilerFile]
    ) -> None:
        start_ns = _began(events, metrics, files)
        for process in sorted(events, key=_by_number) or [""]:
            self._writer(process, start_ns)

    def _writer(self, process: str, start_ns: int) -> TraceWriter:
        rank = len(self._writers)
        place = f"{self.directory.path.resolve()} profiler"
        info = {
            "run_id": hashlib.sha1(place.encode()).hexdigest()[:32],
            "job_name": self.directory.path.resolve().name,
            "host": UNKNOWN_HOST,
            "command": [],
            "start_ns": start_ns,
        }
        writer = TraceWriter(self._destination, rank=rank, run_info=info, queue_bytes=1 << 50)
        writer.set_start_step(0)
        self._writers[process], self._steps[process], self._ends[process] = writer, 0, start_ns
        return writer

    def _write_steps(self, writer: TraceWriter, process: str, events: list[TimelineEvent]) -> None:
        steps: list[tuple[TimelineEvent, str]] = []
        for event in events:
            match = _STEP.search(event.name) or _STEP.search(event.phase)
            if match and event.kind == "X":
                steps.append((event, match[1]))
        steps.sort(key=lambda pair: pair[0].start_us)
        parts = _parts(events, [event for event, _ in steps])
        waits = exchanged.waited(self._exchanges.pop(process, []), [event for event, _ in steps], process)
        for place, (event, mode) in enumerate(steps):
            number = self._steps[process]
            mode_step = number if event.step is None else event.step
            record = StepRecord(number, mode, mode_step, max(int(event.start_us * 1000), 0))
            record.saved = False
            record.timing = {"duration_ns": max(int(event.duration_us * 1000), 0), **parts[place]}
            if (wait := waits[place]) is not None:
                record.timing["collective_ns"] = wait
            writer.submit(record)
            self._steps[process] = number + 1
            self._ends[process] = record.time_ns + record.timing["duration_ns"]
        writer.flush()


def _parts(events: Iterable[TimelineEvent], steps: list[TimelineEvent]) -> list[dict[str, int]]:
    """How long the parts of each step took: what began within it, and loading before it."""
    found: list[dict[str, int]] = [defaultdict(int) for _ in steps]
    starts = [step.start_us for step in steps]
    for event in events:
        column = _PARTS.get(event.phase) or _PARTS.get(event.name)
        if column is None or event.kind != "X":
            continue
        place = bisect_right(starts, event.start_us) - 1
        within = place >= 0 and event.start_us <= starts[place] + steps[place].duration_us
        if not within:
            place += 1
        if (within or column == "loader_ns") and place < len(steps):
            found[place][column] += max(int(event.duration_us * 1000), 0)
    return found


def write_samples(run: Path, metrics: Iterable[SystemMetric], stores: dict[str, PartStore]) -> None:
    """Write samples into the ``system`` table of a run.

    Args:
        run: the run.
        metrics: the samples.
        stores: files of each node that was written to before; those of new nodes are added.
    """
    rows: dict[str, list[Row]] = defaultdict(list)
    for moment in by_moment(metrics, _MOMENT_SECONDS):
        rows[moment[0].node] += _rows(moment)
    for node, own in rows.items():
        if node not in stores:
            stores[node] = PartStore({"system": node_folder(run, _file_name(node))}, 0)
        columns = [pa.array(column) for column in zip(*own, strict=True)]
        stores[node].prepare({"system": pa.Table.from_arrays(columns, schema=TABLES["system"])})
        stores[node].write()


def _rows(moment: list[SystemMetric]) -> Iterator[Row]:
    """Samples of one moment under our names; those of cores also as the node's mean and worst."""
    time_ns = int(moment[0].seconds * 1e9)
    cores: dict[str, list[float]] = {"CPUUtilization": [], "I/OWaitPercentage": []}
    for metric in moment:
        if metric.dimension in cores:
            cores[metric.dimension].append(metric.value)
        if metric.dimension == "CPUUtilization":
            yield time_ns, f"core:{metric.name.removeprefix('cpu')}", "cpu_percent", metric.value
        elif metric.dimension == "GPUUtilization":
            yield time_ns, metric.name, "utilization_percent", metric.value
        elif metric.dimension == "GPUMemoryUtilization":
            yield time_ns, metric.name, "memory_used_percent", metric.value
        elif metric.name == "MemoryUsedPercent" or metric.dimension == "MemoryUsedPercent":
            yield time_ns, "node", "memory_percent", metric.value
        elif metric.dimension != "I/OWaitPercentage":
            yield time_ns, metric.name or metric.type, metric.dimension, metric.value
    for dimension, mean, worst in (
        ("CPUUtilization", "cpu_percent", "cpu_busiest_core_percent"),
        ("I/OWaitPercentage", "iowait_percent", "iowait_worst_core_percent"),
    ):
        if values := cores[dimension]:
            yield time_ns, "node", mean, float(np.mean(values))
            yield time_ns, "node", worst, max(values)


def _began(events: dict[str, list[TimelineEvent]], metrics: list[SystemMetric], files: list[ProfilerFile]) -> int:
    times = [event.start_us * 1000 for every in events.values() for event in every]
    times += [metric.seconds * 1e9 for metric in metrics]
    return max(int(min(times, default=min(file.time_us for file in files) * 1000)), 0)


def _by_number(process: str) -> tuple[int, str]:
    number = process.partition("-")[0]
    return (int(number) if number.isascii() and number.isdigit() else 1 << 62, process)


def _file_name(node: str) -> str:
    return re.sub(r"[^\w.-]", "_", node)[:200] or "unknown"
