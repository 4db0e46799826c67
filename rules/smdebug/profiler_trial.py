"""Reads what SageMaker's profiler wrote, file by file, in smdebug's shape."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic

from stepwatch.probe.smdebug.places import PYTHONTIMELINE_SUFFIX
from stepwatch.probe.store.remote import is_url, local_copy, refresh
from stepwatch.probe.store.smdebug.profiler import (
    ProfilerFile,
    profiler_files,
)
from stepwatch.rules.smdebug.core.access import has_training_ended, is_rule_signalled_gracetime_passed
from stepwatch.rules.smdebug.exceptions import NoMoreProfilerData
from stepwatch.rules.smdebug.profiling import (
    E,
    HorovodProfilerEvents,
    ProfilerSystemEvent,
    SMDataParallelProfilerEvents,
    SMProfilerEvents,
    SystemProfilerEventParser,
    TimeUnits,
    TraceEvent,
    TraceEventParser,
    convert_utc_timestamp_to_microseconds,
)

_POLL_SECONDS = 2.0
_TYPES = {"pythontimeline": "PythontimelineMetrics", "model_timeline": "ModeltimelineMetrics"}
_FILE_SECONDS = 180  # a file may hold what came so long before or after the time in its name


class MetricsReaderBase(Generic[E]):
    """Reads files of the profiler that hold events of a time; each file once.

    Args:
        trace_root_folder: the directory, or ``s3://bucket/prefix``, of which a local copy is kept up to date.
        use_in_memory_cache: changes nothing: what was read is kept.
    """

    def __init__(self, trace_root_folder: str, use_in_memory_cache: bool = False) -> None:
        self._folder = local_copy(trace_root_folder) if is_url(trace_root_folder) else Path(trace_root_folder)
        self._files: list[ProfilerFile] = []
        self._parsed: dict[Path, Any] = {}

    def get_all_event_parsers(self) -> list[Any]:
        """The parsers of the files that were read."""
        return list(self._parsed.values())

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
        """Events that were under way from the start of a step to that of ``end_step``, none where either is missing."""
        first, last = self.time_of_steps(start_step, end_step)
        return self.get_events(first, last, event_type=event_type, file_suffix_filter=file_suffix_filter)

    def time_of_steps(self, start_step: int, end_step: int) -> tuple[int, int]:
        """Microseconds from the start of a step until just before that of another, by timelines of Python.

        Steps are counted within their modes; (0, 0) where there is no such step.
        """
        began: dict[int, int] = {}
        for event in self.get_events(0, 1 << 60, file_suffix_filter=[PYTHONTIMELINE_SUFFIX]):
            number = str((event.event_args or {}).get("step_num", ""))
            if number.isdecimal():
                began[int(number)] = min(began.get(int(number), event.start_time), event.start_time)
        if start_step not in began or end_step not in began:
            return 0, 0
        return began[start_step], began[end_step] - 1


class S3SystemMetricsReader(LocalSystemMetricsReader):
    """Reads system metrics of a prefix in S3."""

    def __init__(self, s3_trial_path: str, use_in_memory_cache: bool = False) -> None:
        super().__init__(s3_trial_path, use_in_memory_cache)


class S3AlgorithmMetricsReader(LocalAlgorithmMetricsReader):
    """Reads timelines of a prefix in S3."""

    def __init__(self, s3_trial_path: str, use_in_memory_cache: bool = False) -> None:
        super().__init__(s3_trial_path, use_in_memory_cache)


SystemMetricsReader = LocalSystemMetricsReader
AlgorithmMetricsReader = LocalAlgorithmMetricsReader


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
