"""Writes timelines as smdebug's profiler does: Chrome's trace events, a file for each stretch of time."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from typing import Any, TextIO

from stepwatch.probe.smdebug.errors import SMDebugTypeError
from stepwatch.probe.smdebug.places import (
    CONVERT_TO_MICROSECS,
    PYTHONTIMELINE_SUFFIX,
    TraceFileLocation,
    get_node_id,
)
from stepwatch.probe.smdebug.profiler_config import ProfilerConfigParser

log = logging.getLogger("stepwatch")


class TimelineRecord:
    """An event.

    Args:
        timestamp: when it began, seconds since the epoch.
        base_start_time: what times in the file count from, microseconds since the epoch.
        training_phase: the track that it is shown on.
        phase: kind of the event: X with a duration, B and E its ends, i a moment.
        operator_name: its name.
        args: what else is known of it; of a moment ``s`` is its scope.
        duration: microseconds; up to now where it is None.
    """

    def __init__(
        self,
        timestamp: float,
        base_start_time: int,
        training_phase: str = "",
        phase: str = "X",
        operator_name: str = "",
        args: dict[str, Any] | None = None,
        duration: int | None = 0,
    ) -> None:
        self.training_phase, self.phase, self.op_name, self.args = training_phase, phase, operator_name, args
        began = int(timestamp * CONVERT_TO_MICROSECS)
        self.base_start_time = base_start_time
        self.rel_ts_micros = began - base_start_time
        self.duration = round(time.time() * CONVERT_TO_MICROSECS) - began if duration is None else duration
        self.event_end_ts_micros = began + self.duration
        self.pid = self.tid = 0

    def to_json(self) -> str:
        """Its entry in the file."""
        entry: dict[str, Any] = {"name": self.op_name, "pid": self.pid, "ph": self.phase, "ts": self.rel_ts_micros}
        args = dict(self.args or {})
        if self.phase == "i" and args:
            entry["s"] = args.pop("s", "t")
        elif self.phase == "X":
            entry["dur"] = self.duration
        return json.dumps({**entry, **({"args": args} if args else {})}, default=str)


class TimelineFileWriter:
    """Takes events, and writes them in a thread of its own where the profiler is enabled.

    A file has its name, in which the end of its last event stands, when it is complete: after so many bytes or seconds
    as the configuration says, and at the end.

    Args:
        profiler_config_parser: the configuration.
        max_queue: events that wait at most before whoever writes has to.
        suffix: end of the names of files.
    """

    def __init__(
        self,
        profiler_config_parser: ProfilerConfigParser,
        max_queue: int = 100,
        suffix: str = PYTHONTIMELINE_SUFFIX,
    ) -> None:
        self.start_time_since_epoch_in_micros = round(time.time() * CONVERT_TO_MICROSECS)
        self._parser = profiler_config_parser
        self._events: queue.Queue[TimelineRecord | None] = queue.Queue(max_queue)
        self._worker = _Worker(self._events, profiler_config_parser, self.start_time_since_epoch_in_micros, suffix)
        self._worker.start()

    def write_trace_events(
        self,
        timestamp: float,
        training_phase: str = "",
        op_name: str = "",
        phase: str = "X",
        duration: float = 0,
        **kwargs: Any,
    ) -> None:
        """Write an event, where the profiler is enabled.

        Args:
            timestamp: when it began, seconds since the epoch.
            training_phase, op_name, phase: as for :class:`TimelineRecord`.
            duration: seconds.
            kwargs: what else is known of it.
        """
        if self._parser.profiling_enabled:
            microseconds = int(duration * CONVERT_TO_MICROSECS)
            base = self.start_time_since_epoch_in_micros
            self.write_event(TimelineRecord(timestamp, base, training_phase, phase, op_name, kwargs, microseconds))

    def write_event(self, event: TimelineRecord) -> None:
        """Write an event.

        Raises:
            SMDebugTypeError: it is none.
        """
        if not isinstance(event, TimelineRecord):
            raise SMDebugTypeError(f"event is a {type(event).__name__}; expected a TimelineRecord")
        if self._worker._healthy and self._worker.is_alive():
            self._events.put(event)

    def flush(self) -> None:
        """Return when what was given is in the file."""
        if self._worker.is_alive():
            self._events.join()

    def close(self) -> None:
        """Complete the file; called again it does nothing."""
        if self._worker.is_alive():
            self._events.put(None)
            self._worker.join()


class _Worker(threading.Thread):
    def __init__(
        self, events: queue.Queue[TimelineRecord | None], parser: ProfilerConfigParser, start_us: int, suffix: str
    ) -> None:
        super().__init__(name="smdebug-timeline", daemon=True)
        self._queue, self._parser, self._suffix = events, parser, suffix
        self._healthy = True
        self._failures = 0
        self._tracks: dict[str, int] = {}
        self._described: set[str] = set()
        self._file: TextIO | None = None
        self._temporary = ""
        self._closed_us = start_us
        self._end_us = 0

    def run(self) -> None:
        while (event := self._queue.get()) is not None:
            try:
                if self._healthy:
                    self._write(event)
            except OSError as error:
                self._failed(error)
            except Exception as error:  # whoever waits for the queue must not wait for ever
                log.warning("an event is not in the timeline: %s: %s", event.op_name, error)
            finally:
                self._queue.task_done()
        try:
            self._complete()
        except OSError as error:
            log.warning("the last part of the timeline cannot be written: %s", error)
        self._queue.task_done()

    def _write(self, event: TimelineRecord) -> None:
        if self._file is not None and self._is_full(event.event_end_ts_micros):
            self._complete()
        if self._file is None:
            self._open(event)
        event.pid = self._tracks.setdefault(event.training_phase, len(self._tracks))
        lines = [event.to_json()]
        if event.training_phase not in self._described:
            self._described.add(event.training_phase)
            lines = [*(_track(event.pid, {"name": event.training_phase}) if event.phase != "i" else []), *lines]
        assert self._file is not None
        self._file.write("".join(f",\n{line}" for line in lines))
        self._file.flush()
        self._end_us = max(self._end_us, event.event_end_ts_micros)

    def _is_full(self, now_us: int) -> bool:
        assert self._file is not None and self._parser.config is not None
        policy = self._parser.config.trace_file.rotation_policy
        seconds = (now_us - self._closed_us) / CONVERT_TO_MICROSECS
        return round(seconds) > policy.file_close_interval or self._file.tell() > policy.file_max_size

    def _open(self, event: TimelineRecord) -> None:
        assert self._parser.config is not None
        folder = os.path.join(self._parser.config.local_path, "framework")
        self._temporary = os.path.join(folder, f"{get_node_id()}_{self._suffix}.tmp")
        os.makedirs(folder, exist_ok=True)
        self._file = open(self._temporary, "w", encoding="utf-8")  # noqa: SIM115 - closed when it is complete
        self._described.clear()
        self._end_us = event.event_end_ts_micros
        self._file.write("[\n" + ",\n".join(_track(0, {"start_time_since_epoch_in_micros": event.base_start_time})))

    def _complete(self) -> None:
        if self._file is None:
            return
        assert self._parser.config is not None
        self._file.write("\n]\n")
        self._file.close()
        self._file = None
        self._closed_us = self._end_us
        folder = self._parser.config.local_path
        while os.path.exists(path := TraceFileLocation.get_file_location(self._end_us, folder, self._suffix)):
            self._end_us += 1  # events of the past may end when others did
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.replace(self._temporary, path)

    def _failed(self, error: OSError) -> None:
        self._failures += 1
        allowed = self._parser.config.trace_file.file_open_fail_threshold if self._parser.config else 0
        if self._failures >= allowed:
            self._healthy = False
            log.warning("the timeline cannot be written, and no more events are taken: %s", error)


def _track(number: int, args: dict[str, Any]) -> list[str]:
    """The two entries that describe a track; the first of a file say what its times count from."""
    entries = {"process_name": args, "process_sort_index": {"sort_index": number}}
    return [json.dumps({"name": name, "ph": "M", "pid": number, "args": each}) for name, each in entries.items()]
