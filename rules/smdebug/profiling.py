"""Queries of what SageMaker's profiler wrote, in smdebug's shape."""

from __future__ import annotations

import enum
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from stepwatch.probe.store.remote import is_url, local_copy, refresh
from stepwatch.probe.store.smdebug.profiler import (
    ProfilerFile,
    SystemMetric,
    TimelineEvent,
    profiler_files,
    read_system_metrics,
    read_timeline,
    system_metric,
    timeline_events,
)
from stepwatch.rules.smdebug.core.access import has_training_ended, is_rule_signalled_gracetime_passed
from stepwatch.rules.smdebug.exceptions import NoMoreProfilerData

_POLL_SECONDS = 2.0
_FILE_SECONDS = 180  # a file may hold what came so long before or after the time in its name

_TIMELINE = re.compile(r"framework/pevents/\d{10}/(\d{16})_([^_/]+)_[a-z_]*timeline\.json$")
_SYSTEM = re.compile(r"system/(?:[^/]+/)*(\d{10})\.(algo-\d+)\.json$")
_TYPES = {"pythontimeline": "PythontimelineMetrics", "model_timeline": "ModeltimelineMetrics"}


class TimeUnits(enum.Enum):
    """Units of times since the epoch."""

    SECONDS = 1
    MILLISECONDS = 2
    MICROSECONDS = 3
    NANOSECONDS = 4


_PER_SECOND = {
    TimeUnits.SECONDS: 1,
    TimeUnits.MILLISECONDS: 10**3,
    TimeUnits.MICROSECONDS: 10**6,
    TimeUnits.NANOSECONDS: 10**9,
}


def convert_utc_timestamp_to_seconds(timestamp: float, unit: TimeUnits = TimeUnits.MICROSECONDS) -> float:
    """A time in seconds."""
    return timestamp // _PER_SECOND[unit]


def convert_utc_timestamp_to_microseconds(timestamp: float, unit: TimeUnits = TimeUnits.MICROSECONDS) -> int:
    """A time in microseconds."""
    return int(timestamp * 10**6 / _PER_SECOND[unit])


def convert_utc_timestamp_to_nanoseconds(timestamp: float, unit: TimeUnits = TimeUnits.MICROSECONDS) -> int:
    """A time in nanoseconds."""
    return int(timestamp * (10**9 // _PER_SECOND[unit]))


def is_valid_tracefilename(filename: str) -> bool:
    """Whether that is the path of a timeline."""
    return _TIMELINE.search(filename) is not None


def get_node_id_from_tracefilename(filename: str) -> str:
    """Process and host of a timeline's path, "" where it is none."""
    match = _TIMELINE.search(filename)
    return match[2] if match else ""


def get_timestamp_from_tracefilename(filename: str) -> int:
    """Microseconds since the epoch of a timeline's path, 0 where it is none."""
    match = _TIMELINE.search(filename)
    return int(match[1]) if match else 0


def validate_system_profiler_file(filename: str) -> bool:
    """Whether that is the path of system metrics."""
    return _SYSTEM.search(filename) is not None


def get_node_id_from_system_profiler_filename(filename: str) -> str | None:
    """The node of their path, or None."""
    match = _SYSTEM.search(filename)
    return match[2] if match else None


def get_utctimestamp_us_since_epoch_from_system_profiler_file(filename: str) -> int | None:
    """Microseconds since the epoch of their path, or None."""
    match = _SYSTEM.search(filename)
    return int(match[1]) * 10**6 if match else None


class ProfilerSystemEvent:
    """A sample of one device; ``timestamp`` is in seconds."""

    def __init__(
        self, event_type: str, name: str, dimension: str, value: float, node_id: str, timestamp: float
    ) -> None:
        self.type, self.name, self.dimension = event_type, name, dimension
        self.value, self.node_id, self.timestamp = value, node_id, timestamp

    @classmethod
    def of(cls, metric: SystemMetric) -> ProfilerSystemEvent:
        """From a sample."""
        return cls(metric.type, metric.name, metric.dimension, metric.value, metric.node, metric.seconds)


class TraceEvent:
    """Something that took time; times are in microseconds."""

    def __init__(
        self,
        ts: int,
        name: str,
        dur: int,
        phase_pid: int,
        phase_tid: int,
        event_args: dict[str, Any] | None,
        node_id: str,
        phase: str,
        file_type: str,
        event_phase: str = "",
        pid: int = 0,
        tid: int = 0,
        process_info: Any = None,
    ) -> None:
        self.start_time, self.duration, self.end_time = ts, dur, ts + dur
        self.event_name, self.event_args = name, event_args
        self.phase_pid, self.phase_tid, self.pid, self.tid = phase_pid, phase_tid, pid, tid
        self.node_id, self.phase, self.event_phase = node_id, phase, event_phase
        self.file_type, self.process_info = file_type, process_info

    @classmethod
    def of(cls, event: TimelineEvent, file_type: str) -> TraceEvent:
        """From an event of a timeline."""
        process, _, host = event.node.partition("-")
        number = event.args.get("pid", 0)
        return cls(
            int(event.start_us),
            event.name,
            int(event.duration_us),
            event.track,
            event.thread,
            dict(event.args),
            f"{host}-{process}",
            event.kind,
            file_type,
            event.phase,
            number if isinstance(number, int) else 0,
            event.thread,
        )

    def to_json(self) -> str:
        """As timelines have it."""
        entry = {"name": self.event_name, "pid": self.pid, "tid": self.tid, "ph": self.phase, "ts": self.start_time}
        return json.dumps({**entry, "dur": self.duration, "args": self.event_args})


E = TypeVar("E", ProfilerSystemEvent, TraceEvent)


class _Parser(Generic[E]):
    """Events of the files that it was given."""

    def __init__(self) -> None:
        self._events: list[E] = []

    def get_all_events(self) -> list[E]:
        """All of them."""
        return self._events

    def clear_events(self) -> None:
        """Forget them."""
        self._events = []


class SystemProfilerEventParser(_Parser[ProfilerSystemEvent]):
    """Reads system metrics."""

    def read_events_from_file(self, eventfile: str) -> None:
        """Take the samples of a file.

        Raises:
            TraceError: a line before the last one is no sample.
        """
        self._events += map(ProfilerSystemEvent.of, read_system_metrics(Path(eventfile)))

    def read_event_from_dict(self, event: dict[str, Any]) -> None:
        """Take one sample.

        Raises:
            ValueError: it is none.
        """
        self._events.append(ProfilerSystemEvent.of(system_metric(event)))

    def read_events_from_json_data(self, system_profiler_json_data: Iterable[dict[str, Any]]) -> None:
        """Take several."""
        for event in system_profiler_json_data:
            self.read_event_from_dict(event)

    def get_events_within_time_range(
        self,
        start_time: float,
        end_time: float,
        unit: TimeUnits = TimeUnits.MICROSECONDS,
        event_type: str | None = None,
    ) -> list[ProfilerSystemEvent]:
        """Samples of a kind within a time, its ends included."""
        per_second = _PER_SECOND[unit]
        first, last = start_time / per_second, end_time / per_second
        return [e for e in self._events if first <= e.timestamp <= last and event_type in (None, e.type)]


ProfilerSystemEvents = SystemProfilerEventParser


class TraceEventParser(_Parser[TraceEvent]):
    """Reads timelines.

    Args:
        type: what kind they are.
    """

    def __init__(self, type: str = "") -> None:
        super().__init__()
        self.type = type

    def read_events_from_file(self, tracefile: str) -> None:
        """Take the events of a file.

        Raises:
            TraceError: it is no timeline.
        """
        name = os.path.basename(tracefile).split("_")
        node = name[1] if len(name) > 1 else ""
        self._events += [TraceEvent.of(event, self.type) for event in read_timeline(Path(tracefile), node)]

    def read_events_from_json_data(self, trace_json_data: list[dict[str, Any]], node_id: str) -> None:
        """Take those of an array."""
        self._events += [TraceEvent.of(event, self.type) for event in timeline_events(trace_json_data, node_id)]

    def get_events_start_time_sorted(self) -> list[TraceEvent]:
        """By when they began."""
        return sorted(self._events, key=lambda event: event.start_time)

    def get_events_end_time_sorted(self) -> list[TraceEvent]:
        """By when they ended."""
        return sorted(self._events, key=lambda event: event.end_time)

    def get_events_within_time_range(
        self, start_time: float, end_time: float, unit: TimeUnits = TimeUnits.MICROSECONDS
    ) -> list[TraceEvent]:
        """Events that were under way at some time within these."""
        first, last = (convert_utc_timestamp_to_microseconds(each, unit) for each in (start_time, end_time))
        return [event for event in self._events if event.start_time <= last and event.end_time >= first]


class SMProfilerEvents(TraceEventParser):
    """Timelines that smdebug writes."""

    def __init__(self, type: str = "PythontimelineMetrics") -> None:
        super().__init__(type)


class HorovodProfilerEvents(TraceEventParser):
    """Timelines of Horovod."""

    def __init__(self) -> None:
        super().__init__("HorovodMetrics")


class SMDataParallelProfilerEvents(TraceEventParser):
    """Timelines of SageMaker's data parallel library."""

    def __init__(self) -> None:
        super().__init__("SMDataParallelMetrics")


class MetricsReaderBase(Generic[E]):
    """Reads files of the profiler that hold events of a time; each file once.

    Args:
        root: the directory, or ``s3://bucket/prefix``, of which a local copy is kept up to date.
        use_in_memory_cache: changes nothing: what was read is kept.
    """

    def __init__(self, root: str, use_in_memory_cache: bool = False) -> None:
        self._folder = local_copy(root) if is_url(root) else Path(root)
        self._files: list[ProfilerFile] = []
        self._parsed: dict[Path, Any] = {}

    def refresh_event_file_list(self) -> None:
        """Look for files that have come."""
        refresh(self._folder)
        self._files = sorted(
            (file for file in profiler_files(self._folder) if self._takes(file)), key=lambda file: file.time_us
        )

    def get_timestamp_of_first_available_file(self) -> int:
        """Microseconds in the name of the first file; 0 where there is none."""
        return self._files[0].time_us if self._files else 0

    def get_timestamp_of_latest_available_file(self) -> int:
        """The same of the last."""
        return self._files[-1].time_us if self._files else 0

    def get_events(
        self,
        start_time: float,
        end_time: float,
        unit: TimeUnits = TimeUnits.MICROSECONDS,
        event_type: str | None = None,
        file_suffix_filter: Sequence[str] | None = None,
    ) -> list[E]:
        """Events within a time, as those of a parser are; of files with one of some suffixes, where there are any."""
        first, last = (convert_utc_timestamp_to_microseconds(each, unit) for each in (start_time, end_time))
        self.refresh_event_file_list()
        found: list[E] = []
        for file in self._files:
            near = first - _FILE_SECONDS * 10**6 <= file.time_us <= last + _FILE_SECONDS * 10**6
            if near and (not file_suffix_filter or file.path.name.endswith(tuple(file_suffix_filter))):
                found += self._within(self._parser(file), first, last, event_type)
        return found

    def _parser(self, file: ProfilerFile) -> Any:
        parser = self._parsed.get(file.path)
        if parser is None:
            parser = self._parsed[file.path] = self._new_parser(file)
            parser.read_events_from_file(str(file.path))
        return parser

    def _takes(self, file: ProfilerFile) -> bool:
        raise NotImplementedError

    def _new_parser(self, file: ProfilerFile) -> Any:
        raise NotImplementedError

    def _within(self, parser: Any, first: int, last: int, event_type: str | None) -> list[E]:
        raise NotImplementedError


class LocalSystemMetricsReader(MetricsReaderBase[ProfilerSystemEvent]):
    """Reads system metrics."""

    def _takes(self, file: ProfilerFile) -> bool:
        return file.kind == "system"

    def _new_parser(self, file: ProfilerFile) -> SystemProfilerEventParser:
        return SystemProfilerEventParser()

    def _within(self, parser: Any, first: int, last: int, event_type: str | None) -> list[ProfilerSystemEvent]:
        found: list[ProfilerSystemEvent] = parser.get_events_within_time_range(first, last, event_type=event_type)
        return found


class LocalAlgorithmMetricsReader(MetricsReaderBase[TraceEvent]):
    """Reads timelines."""

    def _takes(self, file: ProfilerFile) -> bool:
        return file.kind != "system"

    def _new_parser(self, file: ProfilerFile) -> TraceEventParser:
        if file.kind == "horovod_timeline":
            return HorovodProfilerEvents()
        if file.kind == "smdataparallel_timeline":
            return SMDataParallelProfilerEvents()
        return SMProfilerEvents(_TYPES[file.kind])

    def _within(self, parser: Any, first: int, last: int, event_type: str | None) -> list[TraceEvent]:
        found: list[TraceEvent] = parser.get_events_within_time_range(first, last)
        return [event for event in found if event_type in (None, event.file_type)]

    def get_events_by_step(
        self,
        start_step: int,
        end_step: int,
        event_type: str | None = None,
        file_suffix_filter: Sequence[str] | None = None,
    ) -> list[TraceEvent]:
        """Events of the steps in [start_step, end_step), counted within their mode."""
        every = self.get_events(0, 1 << 60, event_type=event_type, file_suffix_filter=file_suffix_filter)
        numbers = ((event, str((event.event_args or {}).get("step_num", ""))) for event in every)
        return [event for event, text in numbers if text.isdigit() and start_step <= int(text) < end_step]


S3SystemMetricsReader = LocalSystemMetricsReader
S3AlgorithmMetricsReader = LocalAlgorithmMetricsReader


class ProfilerTrial:
    """What the profiler wrote about a job, while it runs or afterwards.

    Args:
        name: its name.
        trial_dir: the directory, or ``s3://bucket/prefix``.
        output_dir: where rules write their reports.
    """

    def __init__(self, name: str, trial_dir: str, output_dir: str) -> None:
        self.name, self.path = name, trial_dir
        self.output_dir = output_dir
        self.temp_dir = os.path.join(output_dir, ".sagemaker-ignore")
        self.system_metrics_reader = LocalSystemMetricsReader(trial_dir)
        self.framework_metrics_reader = LocalAlgorithmMetricsReader(trial_dir)
        self.first_timestamp = self.get_first_timestamp()

    def job_finished(self) -> bool:
        """Whether no more will come."""
        ends = any(has_training_ended(os.path.join(self.path, part)) for part in ("", "system", "framework"))
        return ends or is_rule_signalled_gracetime_passed(self.path)

    def get_first_timestamp(self) -> int:
        """Microseconds since the epoch of the first file, when there is one; 0 where there will be none."""
        while not (found := self._timestamps(first=True)) and not self.job_finished():
            time.sleep(_POLL_SECONDS)
        return min(found, default=0)

    def get_latest_timestamp(self) -> int:
        """The same of the last file by now: up to there both metrics and timelines have come, where there are both."""
        return min(self._timestamps(first=False), default=0)

    def wait_for_data(self, end_time: int, start_time: int) -> None:
        """Return when there is something from after ``end_time``, in microseconds.

        Raises:
            NoMoreProfilerData: the job ended, and there is nothing after ``start_time``.
        """
        while self.get_latest_timestamp() < end_time:
            if self.job_finished():
                if start_time >= self.get_latest_timestamp():
                    raise NoMoreProfilerData(end_time)
                return
            time.sleep(_POLL_SECONDS)

    def get_system_metrics(self, start_time: int, end_time: int) -> list[ProfilerSystemEvent]:
        """Samples within a time in microseconds."""
        return self.system_metrics_reader.get_events(start_time, end_time)

    def get_framework_metrics(self, start_time: int, end_time: int) -> list[TraceEvent]:
        """Events within a time in microseconds."""
        return self.framework_metrics_reader.get_events(start_time, end_time)

    def _timestamps(self, *, first: bool) -> list[int]:
        found = []
        for reader in (self.system_metrics_reader, self.framework_metrics_reader):
            reader.refresh_event_file_list()
            ends = reader.get_timestamp_of_first_available_file(), reader.get_timestamp_of_latest_available_file()
            found.append(ends[0] if first else ends[1])
        return [each for each in found if each]
