"""What SageMaker's profiler wrote, as smdebug's events and their parsers."""

from __future__ import annotations

import enum
import json
import os
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from stepwatch.probe.store.smdebug.profiler import (
    SystemMetric,
    TimelineEvent,
    read_system_metrics,
    read_timeline,
    system_metric,
    timeline_events,
)
from stepwatch.rules.smdebug.core.access import ListRequest, S3Handler
from stepwatch.rules.smdebug.core.utils import is_s3

_TIMELINE = re.compile(r"framework/pevents/\d{10}/(\d{16})_([^_/]+)_[a-z_]*timeline\.json$")
_SAGEMAKER_NODE = re.compile(r"(.*)-(algo.*)")  # the host comes first in events, so that they are sorted by it
_METADATA = re.compile(r"([^_]+)_(\d+)_(\d+)\.metadata")
_SYSTEM = re.compile(r"system/(?:[^/]+/)*(\d{10})\.(algo-\d+)\.json$")


class TimeUnits(enum.Enum):
    """Units of times since the epoch."""

    SECONDS = 1
    MILLISECONDS = 2
    MICROSECONDS = 3
    NANOSECONDS = 4


_YES, _NO = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")
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


def convert_utc_datetime_to_microseconds(timestamp_datetime: datetime) -> int:
    """A moment in microseconds."""
    return convert_utc_timestamp_to_microseconds(timestamp_datetime.timestamp(), TimeUnits.SECONDS)


def convert_utc_datetime_to_nanoseconds(timestamp_datetime: datetime) -> int:
    """A moment in nanoseconds."""
    return convert_utc_timestamp_to_nanoseconds(timestamp_datetime.timestamp(), TimeUnits.SECONDS)


def str2bool(v: Any) -> bool:
    """A flag that is spelled as text.

    Raises:
        ValueError: it is none.
    """
    word = str(v).lower()
    if word not in (*_YES, *_NO):
        raise ValueError(f"flag is {v!r}; expected true or false")
    return word in _YES


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


def is_valid_tfprof_tracefilename(filename: str) -> bool:
    """Whether that is the path of a trace of TensorFlow's."""
    return filename.endswith("trace.json.gz") and "tensorflow/detailed_profiling" in filename


def read_tf_profiler_metadata_file(file_path: str) -> tuple[str, str, str]:
    """Node, start and end of a trace of TensorFlow's, in microseconds, as the name of a file beside it says.

    ``("", "0", "0")`` where there is none.
    """
    step = os.sep.join(file_path.split(os.sep)[:-4])
    there, bucket, prefix = is_s3(step)
    names: Iterable[str] = ()
    if is_valid_tfprof_tracefilename(file_path):
        s3 = there and S3Handler.list_prefix(ListRequest(str(bucket), str(prefix)))
        names = s3 or (str(path) for path in Path(step).rglob("*.metadata"))
    found = (_METADATA.fullmatch(os.path.basename(name)) for name in names)
    return next(((match[1], match[2], match[3]) for match in found if match), ("", "0", "0"))


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
        sagemaker = _SAGEMAKER_NODE.fullmatch(event.node)
        number = event.args.get("pid", 0)
        return cls(
            int(event.start_us),
            event.name,
            int(event.duration_us),
            event.track,
            event.thread,
            dict(event.args) or None,
            f"{sagemaker[2]}-{sagemaker[1]}" if sagemaker else event.node,
            event.kind,
            file_type,
            event.phase,
            number if isinstance(number, int) else 0,
            event.thread,
        )

    def to_json(self) -> str:
        """As timelines have it."""
        entry = {"name": self.event_name, "pid": self.pid, "tid": self.tid, "ph": self.phase, "ts": self.start_time}
        args = dict(self.event_args or {})
        if self.phase == "i" and args:
            entry["s"] = args.pop("s", "t")
        elif self.phase == "X":
            entry["dur"] = self.duration
        return json.dumps({**entry, **({"args": args} if args else {})})


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
        self._take(read_timeline(Path(tracefile), node))

    def read_events_from_json_data(self, trace_json_data: list[dict[str, Any]], node_id: str) -> None:
        """Take those of an array."""
        self._take(timeline_events(trace_json_data, node_id))

    def _take(self, events: Iterable[TimelineEvent]) -> None:
        self._events += [TraceEvent.of(event, self.type) for event in events if event.kind == "X"]  # moments are not

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

    def get_events_within_range(self, start_time: datetime, end_time: datetime) -> list[TraceEvent]:
        """The same between two moments."""
        first, last = (convert_utc_datetime_to_microseconds(each) for each in (start_time, end_time))
        return self.get_events_within_time_range(first, last)


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
