"""What SageMaker's profiler wrote, as tables of pandas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from stepwatch.rules.smdebug.profiler_trial import LocalAlgorithmMetricsReader, LocalSystemMetricsReader
from stepwatch.rules.smdebug.profiling import TraceEvent

if TYPE_CHECKING:
    import pandas as pd

_SYSTEM = ["timestamp", "timestamp_us", "value", "system_metric", "dimension", "nodeID", "type"]
_FRAMEWORK = ["start_time", "end_time", "start_time_us", "end_time_us", "tid", "pid", "framework_metric", "step"]
_FRAMEWORK += ["bytes", "process", "nodeID"]
_INTERVAL = 5_000_000_000


def us_since_epoch_to_human_readable_time(us_since_epoch: float) -> str:
    """A time in UTC."""
    return datetime.fromtimestamp(us_since_epoch / 1e6, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S:%f")


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
        events = list(self._events(start_time_us, end_time_us, wanted)) if get_framework_metrics else []
        if cache_metrics:
            self.system_metrics += samples
            self.framework_metrics += events
            samples, events = self.system_metrics, self.framework_metrics
        return self._frame(samples, _SYSTEM), self._frame(events, _FRAMEWORK)

    def get_profiler_data_by_step(
        self, start_step: int, end_step: int, cache_metrics: bool = False
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Events of the steps in [start_step, end_step), and samples from the time of these."""
        found = [_row(event) for event in self.framework_metrics_reader.get_events_by_step(start_step, end_step)]
        if cache_metrics:
            self.framework_metrics += found
            found = self.framework_metrics
        events = self._frame(found, _FRAMEWORK)
        if not found:
            return self._frame([], _SYSTEM), events
        times = (int(events["start_time_us"].min()), int(events["end_time_us"].max()))
        times = times[0] + self.start_time, times[1] + self.start_time
        return self._frame(list(self._samples(*times, ())), _SYSTEM), events

    def _samples(self, first: float, last: float, wanted: Sequence[str]) -> Iterator[list[Any]]:
        for event in self.system_metrics_reader.get_events(first, last):
            if not wanted or event.name in wanted:
                time = int(event.timestamp * 1e6)
                text = us_since_epoch_to_human_readable_time(time)
                yield [text, time, event.value, event.name, event.dimension, event.node_id, event.type]

    def _events(self, first: float, last: float, wanted: Sequence[str]) -> Iterator[list[Any]]:
        for event in self.framework_metrics_reader.get_events(first, last):
            if not wanted or event.event_name in wanted or event.event_phase in wanted:
                yield _row(event)

    def _frame(self, rows: list[list[Any]], columns: list[str]) -> pd.DataFrame:
        import pandas as pd

        frame = pd.DataFrame(rows, columns=columns)
        for column in columns:
            if column.endswith("_us"):
                frame[column] = frame[column] - self.start_time
        return frame.drop_duplicates()


def _row(event: TraceEvent) -> list[Any]:
    args = event.event_args or {}
    return [
        us_since_epoch_to_human_readable_time(event.start_time),
        us_since_epoch_to_human_readable_time(event.end_time),
        event.start_time,
        event.end_time,
        event.tid,
        event.pid,
        args.get("layer_name", args.get("name", event.event_name)),
        int(args.get("step_num", -1)),
        args.get("bytes_fetched", -1),
        event.event_phase,
        event.node_id,
    ]
