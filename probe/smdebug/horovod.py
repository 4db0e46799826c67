"""Splits the one timeline that Horovod writes into files of the profiler, while it grows."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import Any

from stepwatch.probe.smdebug.places import CONVERT_TO_MICROSECS, HOROVODTIMELINE_SUFFIX
from stepwatch.probe.smdebug.profiler_config import ProfilerConfigParser
from stepwatch.probe.smdebug.timeline import TimelineFileWriter, TimelineRecord

log = logging.getLogger("stepwatch")

PATH_VARIABLE = "HOROVOD_TIMELINE"
_POLL_SECONDS = 15.0
_MAX_LINE = 1 << 20  # characters; an event has a few hundred


class HvdTraceFileRotation:
    """Follows the file that ``HOROVOD_TIMELINE`` names, in a thread, where the profiler is enabled.

    Horovod counts microseconds of the monotonic clock; what is written counts from the epoch.

    Args:
        profiler_config_parser: the configuration.

    Attributes:
        enabled: whether there is anything to follow.
    """

    def __init__(self, profiler_config_parser: ProfilerConfigParser) -> None:
        self.hvd_file = os.environ.get(PATH_VARIABLE)
        self.enabled = bool(profiler_config_parser.profiling_enabled and self.hvd_file)
        self.clock_conversion_in_us = round((time.monotonic() - time.time()) * CONVERT_TO_MICROSECS)
        self.training_phase: dict[Any, str] = {}
        self.file_seek_pos = 0
        self._partial = ""
        self._base = 0
        if not self.enabled:
            return
        self.tl_writer = TimelineFileWriter(profiler_config_parser, suffix=HOROVODTIMELINE_SUFFIX)
        self._stopper = threading.Event()
        self._readerthread = threading.Thread(target=self._follow, name="smdebug-horovod", daemon=True)
        self._readerthread.start()

    def close(self) -> None:
        """Read what has come, and complete the last file; called again it does nothing."""
        if self.enabled:
            self._stopper.set()
            self._readerthread.join()
            self.tl_writer.close()

    def _convert_monotonic_to_epoch_time(self, timestamp_in_us: float) -> int:
        return round(timestamp_in_us - self.clock_conversion_in_us)

    def _follow(self) -> None:
        while True:
            ending = self._stopper.is_set()
            try:
                self._read_more(ending)
            except OSError as error:
                log.debug("%s cannot be read: %s", self.hvd_file, error)
            if ending:
                return
            self._stopper.wait(_POLL_SECONDS)

    def _read_more(self, to_the_end: bool) -> None:
        with open(str(self.hvd_file), encoding="utf-8", errors="replace") as file:
            file.seek(self.file_seek_pos)
            while text := file.readline(_MAX_LINE):
                self._partial += text
                if text.endswith("\n") or len(self._partial) > _MAX_LINE:
                    self._take(self._partial)
                    self._partial = ""
            self.file_seek_pos = file.tell()
        if to_the_end:
            self._take(self._partial)

    def _take(self, line: str) -> None:
        try:
            event = json.loads(line.strip().strip("[],"))
            if event["ph"] == "M":
                if "name" in event.get("args", {}):
                    self.training_phase[event["pid"]] = str(event["args"]["name"])
                return
            self.tl_writer.write_event(self._record(event))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return  # the first line is a bracket, and one may be half an event

    def _record(self, event: dict[str, Any]) -> TimelineRecord:
        began = self._convert_monotonic_to_epoch_time(event["ts"])
        self._base = self._base or began  # Horovod's first event may be from before the hook
        args = dict(event.get("args") or {})
        return TimelineRecord(
            began / CONVERT_TO_MICROSECS,
            self._base,
            self.training_phase.get(event.get("pid"), ""),
            str(event["ph"]),
            str(event.get("name", "")),
            {**args, "s": event["s"]} if "s" in event else args,
            int(event.get("dur", 0)),
        )
