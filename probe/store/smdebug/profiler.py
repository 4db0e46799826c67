"""Files of SageMaker's profiler: system metrics as JSON lines, timelines as Chrome traces.

::

    system/incremental/[YYYYMMDDHH/]SECONDS.algo-N.json                  a sample of one device in each line
    framework/pevents/YYYYMMDDHH/MICROSECONDS_NODE_pythontimeline.json   also model_, horovod_, smdataparallel_timeline
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.smdebug.directory import is_smdebug_directory

_MAX_BYTES = 256 << 20
_MAX_SECONDS = 1 << 33
_FOLDERS = ("system", "framework/pevents")
_SYSTEM_NAME = re.compile(r"(\d{10})\.(algo-\d+)\.json")
_TIMELINE_NAME = re.compile(r"(\d{16})_([^_]+)_((?:python|model_|horovod_|smdataparallel_)timeline)\.json", re.ASCII)


@dataclass(frozen=True, slots=True)
class ProfilerFile:
    """A file of the profiler.

    Attributes:
        path: where it is.
        time_us: microseconds since the epoch: the full minute of system metrics, the end of a timeline's last event.
        node: ``algo-1``; of a timeline ``PROCESS-HOST``, where the process is its rank or its number.
        kind: ``system``, or the timeline's: ``pythontimeline``, ``model_timeline``, ...
    """

    path: Path
    time_us: int
    node: str
    kind: str


@dataclass(frozen=True, slots=True)
class SystemMetric:
    """A sample of one device.

    Attributes:
        type: ``cpu``, ``gpu``, ...
        name: ``cpu0``, ``gpu1``, ``MemoryUsedPercent``; "" where the line has none.
        dimension: ``CPUUtilization``, ``GPUMemoryUtilization``, ``I/OWaitPercentage``, ...
        value: in the dimension's unit, mostly per cent.
        node: ``algo-1``.
        seconds: since the epoch.
    """

    type: str
    name: str
    dimension: str
    value: float
    node: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """Something that took time.

    Attributes:
        name: what, such as ``Step:ModeKeys.TRAIN`` or an operator.
        phase: the track that it is on.
        kind: ``X`` for a whole event, ``i`` for a moment; ``B`` and ``E`` are joined to whole ones.
        start_us, duration_us: microseconds since the epoch, and of it.
        node: of its file.
        args: what it was written with.
        track: number of its track.
        thread: number of the thread within it.
    """

    name: str
    phase: str
    kind: str
    start_us: float
    duration_us: float
    node: str
    args: Mapping[str, Any] = field(default_factory=dict)
    track: int = 0
    thread: int = 0

    @property
    def step(self) -> int | None:
        """Count within its mode of the step that it is part of, where it says so."""
        number = str(self.args.get("step_num", ""))
        return int(number) if number.isascii() and number.isdigit() and len(number) < 19 else None


def is_profiler_directory(path: Path) -> bool:
    """Whether SageMaker's profiler seems to have written it."""
    return next(iter(profiler_files(path)), None) is not None


def is_importable(path: Path) -> bool:
    """Whether smdebug or SageMaker's profiler seems to have written a directory."""
    return is_smdebug_directory(path) or is_profiler_directory(path)


def profiler_files(path: Path) -> Iterator[ProfilerFile]:
    """Its files by folder and name; files that are still being written (``.tmp``) are left out."""
    for below in _FOLDERS:
        for folder, folders, names in os.walk(path / below):
            folders.sort()
            for name in sorted(names):
                if match := _SYSTEM_NAME.fullmatch(name):
                    yield ProfilerFile(Path(folder, name), int(match[1]) * 1_000_000, match[2], "system")
                elif match := _TIMELINE_NAME.fullmatch(name):
                    yield ProfilerFile(Path(folder, name), int(match[1]), match[2], match[3])


def read_system_metrics(path: Path) -> list[SystemMetric]:
    """The samples of a file; a last line that is cut short is left out.

    Raises:
        TraceError: another line is no sample.
    """
    lines = _read(path).split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(system_metric(json.loads(line)))
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise TraceError(f"{path}: line {number}: {error}") from None
    return found


def system_metric(entry: Any) -> SystemMetric:
    """A sample from its JSON object.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"holds a {type(entry).__name__}; expected an object")
    kind, dimension, node = (_text(entry, key) for key in ("Type", "Dimension", "NodeId"))
    value, seconds = _number(entry, "Value"), _number(entry, "Timestamp")
    if not 0 < seconds < _MAX_SECONDS:
        raise ValueError(f"Timestamp is {seconds}; expected seconds since the epoch")
    return SystemMetric(kind, str(entry.get("Name") or ""), dimension, value, node, seconds)


def read_timeline(path: Path, node: str) -> list[TimelineEvent]:
    """The events of a file, as they stand there.

    Raises:
        TraceError: it is no timeline.
    """
    try:
        return timeline_events(json.loads(_read(path)), node)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: {error}") from None


def timeline_events(entries: Any, node: str) -> list[TimelineEvent]:
    """The events of a Chrome trace.

    Args:
        entries: the array, or the object that has it as ``traceEvents``.
        node: name of the node.

    Raises:
        ValueError: it is none.
    """
    if isinstance(entries, dict):
        entries = entries.get("traceEvents")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("holds no array of objects; expected a Chrome trace")
    began = 0.0
    tracks: dict[int, str] = {}
    open_events: dict[int, list[TimelineEvent]] = {}
    found: list[TimelineEvent] = []
    for entry in entries:
        kind, track = entry.get("ph"), _whole(entry, "pid")
        args = entry["args"] if isinstance(entry.get("args"), dict) else {}
        if kind == "M":
            if "start_time_since_epoch_in_micros" in args:
                began = _number(args, "start_time_since_epoch_in_micros")
            elif entry.get("name") == "process_name" and "name" in args:
                tracks[track] = str(args["name"])
            continue
        if kind == "E":
            if begun := open_events.get(track):
                first = begun.pop()
                found.append(_ended(first, began + _number(entry, "ts")))
            continue
        if kind not in ("X", "i", "B"):
            continue
        event = TimelineEvent(
            name=str(entry.get("name", "")),
            phase=tracks.get(track, ""),
            kind=kind,
            start_us=began + _number(entry, "ts"),
            duration_us=_number(entry, "dur") if kind == "X" and "dur" in entry else 0.0,
            node=node,
            args=args,
            track=track,
            thread=_whole(entry, "tid"),
        )
        if kind == "B":
            open_events.setdefault(track, []).append(event)
        else:
            found.append(event)
    return found


def _ended(event: TimelineEvent, end_us: float) -> TimelineEvent:
    values = {name: getattr(event, name) for name in TimelineEvent.__slots__}
    return TimelineEvent(**{**values, "kind": "X", "duration_us": max(end_us - event.start_us, 0.0)})


def by_moment(metrics: Iterable[SystemMetric], gap: float) -> Iterator[list[SystemMetric]]:
    """Samples in the order of time, those of one node that lie no further apart than ``gap`` seconds together."""
    latest: dict[str, list[SystemMetric]] = {}
    for metric in sorted(metrics, key=lambda each: each.seconds):
        moment = latest.get(metric.node)
        if moment is not None and metric.seconds - moment[0].seconds <= gap:
            moment.append(metric)
            continue
        if moment is not None:
            yield moment
        latest[metric.node] = [metric]
    yield from latest.values()


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r:.40}; expected text")
    value.encode()  # half a character has no UTF-8, and can be stored nowhere
    return value


def _number(entry: Mapping[str, Any], key: str) -> float:
    value = entry.get(key)
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or abs(number) > 1e18:
        raise ValueError(f"{key} is {value!r:.40}; expected a number")
    return number


def _whole(entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key, 0)
    return value if isinstance(value, int) else 0


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise TraceError(f"{path}: has more than {_MAX_BYTES} bytes")
    return content
