"""What SageMaker's profiler wrote, as tables of pandas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from stepwatch.rules.smdebug.core.utils import match_inc
from stepwatch.rules.smdebug.profiler_trial import LocalAlgorithmMetricsReader, LocalSystemMetricsReader
from stepwatch.rules.smdebug.profiling import TraceEvent, convert_utc_datetime_to_microseconds

if TYPE_CHECKING:
    import pandas as pd

_SYSTEM = ["timestamp", "timestamp_us", "value", "system_metric", "dimension", "nodeID", "type"]
_TIMES = ["start_time", "end_time", "start_time_us", "end_time_us"]
_FRAMEWORK = [*_TIMES, "tid", "pid", "framework_metric", "step", "bytes", "process", "nodeID"]
_LOADER = [*_TIMES, "duration_us", "pid", "framework_metric", "step"]
_LOADER += ["worker_id", "num_workers", "pin_memory", "process", "node_id"]
_INTERVAL = 5_000_000_000
_TEXT = "%Y-%m-%dT%H:%M:%S:%f"


def us_since_epoch_to_human_readable_time(us_since_epoch: float) -> str:
    """A time in UTC."""
    return datetime.fromtimestamp(us_since_epoch / 1e6, timezone.utc).strftime(_TEXT)


def ns_since_epoch_to_human_readable_time(ns_since_epoch: float) -> str:
    """The same of nanoseconds."""
    return us_since_epoch_to_human_readable_time(ns_since_epoch / 1e3)


class PandasFrame:
    """Samples and events of a job; times in microseconds count from the first file.

    Args:
        path: the profiler's output, or ``s3://bucket/prefix``.
        use_in_memory_cache: changes nothing: what was read is kept.
        scan_interval: how far beyond the last file samples are looked for, in microseconds.
    """

    def __init__(self, path: str, use_in_memory_cache: bool = False, scan_interval: int = _INTERVAL) -> None:
        self.path = path
        self.interval = scan_interval
        self.system_metrics_reader = LocalSystemMetricsReader(path)
        self.framework_metrics_reader = LocalAlgorithmMetricsReader(path)
        self.system_metrics: list[list[Any]] = []
        self.framework_metrics: list[list[Any]] = []
        self._refresh()
        self.start_time = self.system_metrics_reader.get_timestamp_of_first_available_file()

    def _refresh(self) -> None:
        self.system_metrics_reader.refresh_event_file_list()
        self.framework_metrics_reader.refresh_event_file_list()

    def get_all_system_metrics(self, selected_system_metrics: Sequence[str] = ()) -> pd.DataFrame:
        """All samples, or those of some devices and measures."""
        self._refresh()
        reader = self.system_metrics_reader
        end = reader.get_timestamp_of_latest_available_file() + self.interval
        first = reader.get_timestamp_of_first_available_file()
        return self.get_profiler_data_by_time(
            first, end, selected_system_metrics=selected_system_metrics, get_framework_metrics=False
        )[0]

    def get_all_framework_metrics(self, selected_framework_metrics: Sequence[str] = ()) -> pd.DataFrame:
        """All events, or those of some names or phases."""
        self._refresh()
        end = self.framework_metrics_reader.get_timestamp_of_latest_available_file()
        return self.get_profiler_data_by_time(
            self.start_time, end, selected_framework_metrics=selected_framework_metrics, get_system_metrics=False
        )[1]

    def get_all_dataloader_metrics(self, selected_framework_metrics: Sequence[str] = ()) -> pd.DataFrame:
        """All events with what data loaders say of their workers, or those whose names or phases match expressions."""
        self._refresh()
        end = self.framework_metrics_reader.get_timestamp_of_latest_available_file()
        wanted = list(selected_framework_metrics)
        found = [
            _loader_row(event)
            for event in self.framework_metrics_reader.get_events(self.start_time, end)
            if not wanted or match_inc(event.event_name, wanted) or match_inc(event.event_phase, wanted)
        ]
        return self._frame(found, _LOADER)

    def get_profiler_data_by_time(
        self,
        start_time_us: float,
        end_time_us: float,
        cache_metrics: bool = False,
        selected_framework_metrics: Sequence[str] = (),
        selected_system_metrics: Sequence[str] = (),
        get_framework_metrics: bool = True,
        get_system_metrics: bool = True,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Samples and events between two times, in microseconds since the epoch.

        Args:
            start_time_us, end_time_us: the times.
            cache_metrics: with what was asked for before.
            selected_framework_metrics: names or phases of events; all where there are none.
            selected_system_metrics: names of samples; all where there are none.
            get_framework_metrics, get_system_metrics: whether they are wanted.
        """
        samples = list(self._samples(start_time_us, end_time_us, selected_system_metrics)) if get_system_metrics else []
        wanted = selected_framework_metrics
        found = self._events(start_time_us, end_time_us, wanted) if get_framework_metrics else ()
        events = [_row(event) for event in found]
        if cache_metrics:
            self.system_metrics += samples
            self.framework_metrics += events
            samples, events = self.system_metrics, self.framework_metrics
        return self._frame(samples, _SYSTEM), self._frame(events, _FRAMEWORK)

    def get_profiler_data_by_step(
        self, start_step: int, end_step: int, cache_metrics: bool = False
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Events of steps from one to another, both included, and samples from the time of these."""
        samples, events = self.get_all_system_metrics(), self.get_all_framework_metrics()
        events = events[events["step"].between(start_step, end_step)]
        first, last = events["start_time_us"].min(), events["end_time_us"].max()
        return samples[samples["timestamp_us"].between(first, last)], events

    def get_framework_metrics_by_timesteps(
        self, timestep_list: Sequence[Any] = (), selected_framework_metrics: Sequence[str] = ()
    ) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
        """What was under way at some moments, to be held against samples of the machine.

        Args:
            timestep_list: the moments, as tables have them or as datetimes; at the last one nothing is looked for.
            selected_framework_metrics: names or phases of events; all where there are none.

        Returns:
            Three sums of durations over all moments: by phase, as shares of the largest; by name, steps left out, in
            microseconds; by kind of step, in microseconds.
        """
        moments = sorted(map(self.convert_datetime_to_timestamp, timestep_list))
        phases: Counter[str] = Counter()
        names: Counter[str] = Counter()
        events = list(self._events(moments[0], moments[-1], selected_framework_metrics)) if moments else []
        for moment in moments:
            for event in events:
                if event.start_time < moment < event.end_time and moment < moments[-1]:
                    phases[event.event_phase] += event.duration
                    if "Step" not in event.event_name:
                        names[event.event_name] += event.duration
        steps = {phase: total for phase, total in phases.items() if "Step" in phase}
        others = {phase: total for phase, total in phases.items() if "Step" not in phase}
        return _shares(others), dict(names), steps

    def get_framework_metrics_by_begin_and_end_timesteps(
        self,
        begin_timestep_list: Sequence[Any],
        end_timestep_list: Sequence[Any],
        selected_framework_metrics: Sequence[str] = (),
    ) -> tuple[dict[str, float], dict[str, float]]:
        """What was under way within some stretches of time, slow steps say.

        Args:
            begin_timestep_list, end_timestep_list: their limits, as tables have them or as datetimes.
            selected_framework_metrics: names or phases of events; all where there are none.

        Returns:
            Sums of durations over all stretches, steps left out, by phase and by name, as shares of the largest.
        """
        convert = self.convert_datetime_to_timestamp
        limits = list(zip(map(convert, begin_timestep_list), map(convert, end_timestep_list), strict=False))
        phases: Counter[str] = Counter()
        names: Counter[str] = Counter()
        ends = (min(limits)[0], max(end for _, end in limits)) if limits else (0, 0)
        events = [
            each for each in self._events(*ends, selected_framework_metrics) if limits and "Step" not in each.event_name
        ]
        for first, last in limits:
            for event in events:
                if event.end_time >= first and event.start_time <= last:
                    phases[event.event_phase] += event.duration
                    names[event.event_name] += event.duration
        return _shares(phases), _shares(names)

    def convert_datetime_to_timestamp(self, timestamp: Any) -> int:
        """Microseconds since the epoch of a moment, as tables have it or as a datetime.

        Raises:
            ValueError: it is none.
        """
        import pandas as pd

        return convert_utc_datetime_to_microseconds(pd.to_datetime(timestamp, format=_TEXT, utc=True))

    def _samples(self, first: float, last: float, wanted: Sequence[str]) -> Iterator[list[Any]]:
        for event in self.system_metrics_reader.get_events(first, last):
            if not wanted or event.name in wanted:
                time = int(event.timestamp * 1e6)
                text = us_since_epoch_to_human_readable_time(time)
                yield [text, time, event.value, event.name, event.dimension, event.node_id, event.type]

    def _events(self, first: float, last: float, wanted: Sequence[str]) -> Iterator[TraceEvent]:
        for event in self.framework_metrics_reader.get_events(first, last):
            if not wanted or event.event_name in wanted or event.event_phase in wanted:
                yield event

    def _frame(self, rows: list[list[Any]], columns: list[str]) -> pd.DataFrame:
        import pandas as pd

        frame = pd.DataFrame(rows, columns=columns)
        for column in ("timestamp_us", "start_time_us", "end_time_us"):
            if column in columns:
                frame[column] = frame[column] - self.start_time
        return frame.drop_duplicates()


def _row(event: TraceEvent) -> list[Any]:
    args = event.event_args or {}
    named = [_name(event, args), _step(args), args.get("bytes_fetched", -1)]
    return [*_times(event), event.tid, event.pid, *named, event.event_phase, event.node_id]


def _loader_row(event: TraceEvent) -> list[Any]:
    args = event.event_args or {}
    pinned = str(args["pin_memory"] is True) if "pin_memory" in args else "NA"
    workers = [args.get("worker_id", -1), args.get("num_workers", -1), pinned]
    named = [_name(event, args), _step(args), *workers]
    return [*_times(event), event.duration, event.pid, *named, event.event_phase, event.node_id]


def _times(event: TraceEvent) -> list[Any]:
    times = event.start_time, event.end_time
    return [*map(us_since_epoch_to_human_readable_time, times), *times]


def _step(args: dict[str, Any]) -> int:
    number = str(args.get("step_num", ""))
    return int(number) if number.isascii() and number.isdigit() and len(number) < 19 else -1


def _name(event: TraceEvent, args: dict[str, Any]) -> str:
    return str(args.get("layer_name", args.get("name", event.event_name)))


def _shares(totals: dict[str, int]) -> dict[str, float]:
    largest = max(totals.values(), default=0)
    return {name: total / largest for name, total in totals.items()} if largest else dict(totals)
