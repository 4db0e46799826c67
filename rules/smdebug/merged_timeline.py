"""Timelines of all processes, and the use of the machine, as one that Perfetto or chrome://tracing shows."""

from __future__ import annotations

import copy
import enum
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from stepwatch.probe.smdebug.places import TraceFileLocation
from stepwatch.probe.store.smdebug.profiler import SystemMetric, by_moment
from stepwatch.rules.smdebug.core.access import write_file
from stepwatch.rules.smdebug.profiler_trial import LocalAlgorithmMetricsReader, LocalSystemMetricsReader
from stepwatch.rules.smdebug.profiling import ProfilerSystemEvent, TraceEvent

_TRACKS = {
    "Step:": 1,
    "Forward": 10_000,
    "Backward": 20_000,
    "DataIterator": 30_000,
    "Dataset": 40_000,
    "/device": 50_000,
    "/host": 60_000,
    "gpu_functions": 70_000,
    "cpu_functions": 80_000,
    "Horovod": 90_000,
    "": 1_000_000,
}
"""The order of tracks from top to bottom: numbers from which those whose name holds a text are counted."""

_LOW_PERCENT = 85.0  # a GPU that is used less is marked
_MOMENT_SECONDS = 0.02
_MARK = "sys_metrics_bottlenecks"


class MergeUnit(enum.Enum):
    """What the limits of a merged timeline are."""

    TIME = "time"
    STEP = "step"


class MergedTimeline:
    """Merges timelines.

    Args:
        path: the profiler's output, or ``s3://bucket/prefix``.
        file_suffix_filter: ends of the names of timelines, ``model_timeline.json`` say; all of them by default.
        output_directory: where the merged one is written, in S3 too; in ``path`` by default.
    """

    def __init__(
        self, path: str, file_suffix_filter: Sequence[str] | None = None, output_directory: str | None = None
    ) -> None:
        self.path, self.out_dir = path, path if output_directory is None else output_directory
        self.file_suffix_filter = file_suffix_filter
        self.framework_metrics_reader = LocalAlgorithmMetricsReader(path)

    def file_name(self, end_timestamp_in_us: float) -> str:
        """Where a timeline up to that moment is written."""
        return TraceFileLocation.get_merged_trace_file_location(self.out_dir, end_timestamp_in_us)

    def merge_timeline(
        self,
        start: float,
        end: float,
        unit: MergeUnit | str = MergeUnit.TIME,
        sys_metrics_filter: Mapping[str, Any] | None = None,
    ) -> str:
        """Write what was under way between two moments, and return the path of the file.

        Args:
            start, end: microseconds since the epoch; or steps, of which the last is left out.
            unit: which of the two; also as text.
            sys_metrics_filter: ``{}`` leaves out the use of the machine. By default there is a counter for each of its
                measures, and a mark where a GPU was used less than 85 %.

        Raises:
            ValueError: there is no such unit.
            TraceError: a file is damaged.
        """
        if MergeUnit(unit) is MergeUnit.STEP:
            start, end = self.framework_metrics_reader.time_of_steps(int(start), int(end))
        events = self.framework_metrics_reader.get_events(start, end, file_suffix_filter=self.file_suffix_filter)
        if sys_metrics_filter is None or sys_metrics_filter:
            samples = LocalSystemMetricsReader(self.path).get_events(start, end)
            events += [*_marks(samples), *map(_counter, samples)]
        path = self.file_name(end)
        entries = ",\n".join(_entries(sorted(events, key=lambda event: event.start_time)))
        write_file(path, f"[\n{entries}\n]".encode())
        return path


def _entries(events: Iterable[TraceEvent]) -> Iterator[str]:
    """Events in the order of time, each after what describes its track and its thread."""
    following = dict(_TRACKS)
    tracks: dict[str, int] = {}
    threads: dict[tuple[int, str], int] = {}
    for event in events:
        if event.event_phase not in tracks:
            kind = next(text for text in _TRACKS if text in event.event_phase)
            number = tracks[event.event_phase] = following[kind]
            following[kind] += 1
            yield _described("process_name", number, name=event.event_phase)
            yield _described("process_sort_index", number, sort_index=number)
        shown = copy.copy(event)  # the reader keeps its own
        shown.pid = tracks[event.event_phase]
        thread = (shown.pid, f"{event.node_id}_{event.tid}")
        if thread not in threads:
            threads[thread] = len(threads)
            entry = {"name": "thread_name", "ph": "M", "pid": shown.pid, "tid": threads[thread]}
            yield json.dumps({**entry, "args": {"name": thread[1]}})
        shown.tid = threads[thread]
        yield shown.to_json()


def _described(what: str, track: int, **args: Any) -> str:
    return json.dumps({"name": what, "ph": "M", "pid": track, "args": args})


def _named(sample: ProfilerSystemEvent) -> str:
    return f"{sample.name}_{sample.dimension}_{sample.node_id}"


def _counter(sample: ProfilerSystemEvent) -> TraceEvent:
    return _of_machine(sample.timestamp, _named(sample), "sys_metrics", "C", {"value": sample.value}, sample.node_id)


def _marks(samples: Sequence[ProfilerSystemEvent]) -> Iterator[TraceEvent]:
    """The moments at which a GPU had little to do, each with all that was measured at it."""
    metrics = [SystemMetric(s.type, s.name, s.dimension, s.value, s.node_id, s.timestamp) for s in samples]
    for moment in by_moment(metrics, _MOMENT_SECONDS):
        if any(each.dimension == "GPUUtilization" and each.value < _LOW_PERCENT for each in moment):
            values = {f"{each.name}_{each.dimension}_{each.node}": each.value for each in moment}
            yield _of_machine(moment[0].seconds, _MARK, _MARK, "i", {**values, "s": "g"}, moment[0].node)


def _of_machine(seconds: float, name: str, phase: str, kind: str, args: dict[str, Any], node: str) -> TraceEvent:
    return TraceEvent(int(seconds * 1e6), name, 0, 0, 0, args, node, kind, "system_metrics", phase)
