"""Reads a Kineto trace, a piece at a time: what it takes is bounded by what is kept of an event, not by the text."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.errors import TraceError

try:
    from orjson import loads
except ImportError:
    from json import loads  # type: ignore[assignment]

_PIECE = 8 << 20
_BEGINNING = 64 << 10
_LONGEST_EVENT = 64 << 20
_MOST_EVENTS = 20_000_000
_LONGEST_NAME = 500
_LATEST_MICROSECONDS = 9e15  # the year 2255; nanoseconds since the epoch still fit into 64 bits

# Inside a string neither could stand: its quotes would be escaped.
_ARRAY = re.compile(rb'"traceEvents"\s*:\s*\[')
_SCHEMA = re.compile(rb'"(?:schemaVersion|deviceProperties|baseTimeNanoseconds)"\s*:')
_FIRST_EVENT = re.compile(rb'\[\s*\{[^{}]*"ph"\s*:')
_BETWEEN_EVENTS = re.compile(rb'\}\s*,\s*(?=\{\s*"(?:ph|cat|name|pid|tid|ts|dur|id|s|bp|args)")')

HOST = ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver", "hip_runtime", "xpu_runtime", "privateuse1_runtime")
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "c10::Half": "float16",
    "c10::BFloat16": "bfloat16",
    "c10::Float8_e4m3fn": "float8_e4m3fn",
    "c10::Float8_e5m2": "float8_e5m2",
    "c10::complex<float>": "complex64",
    "c10::complex<double>": "complex128",
    "long int": "int64",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "signed char": "int8",
    "unsigned char": "uint8",
    "bool": "bool",
}


@dataclass(frozen=True)
class Host:
    """What ran on the host: operators, annotations and calls of the device's runtime. Columns of equal length [n].

    Attributes:
        start, end: nanoseconds, of one clock with those of the devices.
        name: index into ``names``.
        category: index into :data:`HOST`.
        thread: number of the thread, counted from 0.
        dtype: index into ``dtypes``: of the first tensor among the inputs; -1 where that is not known.
        correlation: number shared by a call and the kernel that it launched; -1 where there is none.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    name: NDArray[np.int64]
    category: NDArray[np.int64]
    thread: NDArray[np.int64]
    dtype: NDArray[np.int64]
    correlation: NDArray[np.int64]


@dataclass(frozen=True)
class Device:
    """What ran on devices. Columns of equal length [n].

    Attributes:
        start, end, name, correlation: as of :class:`Host`.
        category: index into :data:`DEVICE`.
        device, stream: their numbers, -1 where the trace does not say.
        bytes: moved, 0 where the trace does not say.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    name: NDArray[np.int64]
    category: NDArray[np.int64]
    device: NDArray[np.int64]
    stream: NDArray[np.int64]
    correlation: NDArray[np.int64]
    bytes: NDArray[np.int64]


@dataclass(frozen=True)
class Memory:
    """Allocations (positive) and releases (negative), in bytes. Columns of equal length [n].

    Attributes:
        time: nanoseconds.
        device: number of the accelerator, -1 for the host.
        bytes: of this one.
        total: allocated after it.
    """

    time: NDArray[np.int64]
    device: NDArray[np.int64]
    bytes: NDArray[np.int64]
    total: NDArray[np.int64]


@dataclass(frozen=True)
class KinetoTrace:
    """A trace of one rank.

    Attributes:
        rank: as the trace says, None where it does not.
        world_size: the same.
        base_ns: nanoseconds since the epoch at time 0, 0 where the trace does not say.
        names, dtypes: what the columns' indices stand for.
        events: number of events of any kind.
        host, device, memory: what is kept of them.
    """

    rank: int | None
    world_size: int | None
    base_ns: int
    names: list[str]
    dtypes: list[str]
    events: int
    host: Host
    device: Device
    memory: Memory


def read_kineto(path: Path) -> KinetoTrace:
    """Read the JSON that torch.profiler exports (``export_chrome_trace``), compressed by gzip or not.

    Raises:
        TraceError: the file is something else, or damaged.
        OSError: it cannot be read.
    """
    reader = _Reader(path)
    about: dict[str, Any] = {}
    try:
        with _open(path) as file:
            for events in _pieces(path, file, about):
                reader.add(events)
    except (zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise TraceError(f"{path}: not a whole gzip file: {error}") from None
    except MemoryError:
        raise TraceError(f"{path}: too large for this machine's memory") from None
    return reader.finish(about)


def is_kineto(path: Path) -> bool:
    """Whether a file begins as such a trace."""
    try:
        with _open(path) as file:
            text = file.read(_BEGINNING).lstrip()
    except (OSError, EOFError, zlib.error):
        return False
    if text.startswith(b"["):
        return bool(_FIRST_EVENT.match(text))
    return text.startswith(b"{") and any(mark.search(text) for mark in (_ARRAY, _SCHEMA))


def _open(path: Path) -> IO[bytes]:
    file = path.open("rb")
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.open(file) if compressed else file  # type: ignore[return-value]


def _pieces(path: Path, file: IO[bytes], about: dict[str, Any]) -> Iterator[list[Any]]:
    """The events, some at a time; what stands beside them goes into ``about``."""
    text = file.read(_PIECE)
    if text.lstrip()[:1] == b"[":
        opening, rest = b"[", text.lstrip()[1:]
    else:
        opened = _ARRAY.search(text)
        if not text.lstrip().startswith(b"{") or opened is None:
            raise TraceError(f'{path}: not a trace of torch.profiler: no "traceEvents" at its beginning')
        head = _decode(path, text[: opened.end()] + b"]}")
        about.update({key: value for key, value in head.items() if key != "traceEvents"})
        opening, rest = b'{"traceEvents":[', text[opened.end() :]
    while piece := file.read(_PIECE):
        cut = _last_cut(rest)
        if cut is None:
            rest += piece
            if len(rest) > _LONGEST_EVENT:
                raise TraceError(f"{path}: not a trace of torch.profiler: {_LONGEST_EVENT >> 20} MB without an event")
            continue
        yield _decode(path, b"[" + rest[: cut.start() + 1] + b"]")
        rest = rest[cut.end() :] + piece
    last = _decode(path, opening + rest)
    if isinstance(last, dict):
        about.update({key: value for key, value in last.items() if key != "traceEvents"})
        last = last["traceEvents"]
    yield last


def _last_cut(text: bytes) -> re.Match[bytes] | None:
    """The last place between two events."""
    for reach in (1 << 16, len(text)):
        found = list(_BETWEEN_EVENTS.finditer(text, max(len(text) - reach, 0)))
        if found:
            return found[-1]
    return None


def _decode(path: Path, text: bytes) -> Any:
    try:
        return loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: not valid JSON, or cut off: {str(error).splitlines()[0]}") from None


class _Codes(dict[Any, int]):
    """Numbers things in the order in which they come."""

    def __missing__(self, key: Any) -> int:
        code = self[key] = len(self)
        return code


class _Reader:
    """Takes of each event what is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = _Codes()
        self._dtypes = _Codes()
        self._threads = _Codes()
        self._events = 0
        self._host: list[NDArray[np.float64]] = []
        self._device: list[NDArray[np.float64]] = []
        self._memory: list[NDArray[np.float64]] = []

    def add(self, events: list[Any]) -> None:
        """Some of the events.

        Raises:
            TraceError: one of them is not what it should be.
        """
        self._events += len(events)
        if self._events > _MOST_EVENTS:
            raise TraceError(f"{self._path}: more than {_MOST_EVENTS:,} events")
        host, device, memory = [], [], []
        try:
            for event in events:
                kind = event["ph"]
                if kind == "X":
                    category = event.get("cat")
                    if category in _HOST_CODES:
                        host.append(self._host_row(event, _HOST_CODES[category]))
                    elif category in _DEVICE_CODES:
                        device.append(self._device_row(event, _DEVICE_CODES[category]))
                elif kind == "i" and event.get("name") == "[memory]":
                    args = event["args"]
                    number = args["Device Id"] if args["Device Type"] else -1
                    memory.append((event["ts"], 0.0, number, args["Bytes"], args.get("Total Allocated", 0)))
            for rows, found, width in ((self._host, host, 7), (self._device, device, 8), (self._memory, memory, 5)):
                rows.append(np.array(found, np.float64).reshape(-1, width))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"{type(error).__name__}: {error}"
            raise TraceError(f"{self._path}: an event is not as torch.profiler writes them ({what})") from None

    def _host_row(self, event: dict[str, Any], category: int) -> tuple[Any, ...]:
        args: Mapping[str, Any] = event.get("args") or {}
        dtype = -1
        for text in args.get("Input type", ()):
            if text in _DTYPES:
                dtype = self._dtypes[_DTYPES[text]]
                break
        return (
            event["ts"],
            event.get("dur", 0),
            self._names[event["name"]],
            category,
            self._threads[event.get("pid"), event.get("tid")],
            dtype,
            args.get("correlation", -1),
        )

    def _device_row(self, event: dict[str, Any], category: int) -> tuple[Any, ...]:
        args: Mapping[str, Any] = event.get("args") or {}
        return (
            event["ts"],
            event.get("dur", 0),
            self._names[event["name"]],
            category,
            args.get("device", event.get("pid", -1)),
            args.get("stream", event.get("tid", -1)),
            args.get("correlation", -1),
            args.get("bytes", 0),
        )

    def finish(self, about: Mapping[str, Any]) -> KinetoTrace:
        """All events have come.

        Raises:
            TraceError: times that cannot be.
        """
        base = about.get("baseTimeNanoseconds", 0)
        spread = about.get("distributedInfo")
        spread = spread if isinstance(spread, dict) else {}
        host, device, memory = (
            self._columns(rows, width) for rows, width in ((self._host, 7), (self._device, 8), (self._memory, 5))
        )
        return KinetoTrace(
            rank=_natural(spread.get("rank")),
            world_size=_natural(spread.get("world_size")),
            base_ns=_natural(base) or 0,
            names=[_printable(str(name)[:_LONGEST_NAME]) for name in self._names],
            dtypes=list(self._dtypes),
            events=self._events,
            host=Host(*host),
            device=Device(*device),
            memory=Memory(memory[0], *memory[2:]),
        )

    def _columns(self, rows: list[NDArray[np.float64]], width: int) -> list[NDArray[np.int64]]:
        """(start, end, ...) in nanoseconds, by start."""
        table = np.concatenate([np.empty((0, width)), *rows])
        rows.clear()
        times, lengths = table[:, 0], table[:, 1]
        if not (np.isfinite(table).all() and (np.abs(times) + lengths < _LATEST_MICROSECONDS).all()):
            raise TraceError(f"{self._path}: an event has a time or number that cannot be")
        table = table[np.lexsort((-lengths, times))]
        start = np.rint(table[:, 0] * 1e3).astype(np.int64)
        end = start + np.rint(np.maximum(table[:, 1], 0) * 1e3).astype(np.int64)
        rest = [np.clip(column, -(2.0**62), 2.0**62).astype(np.int64) for column in table.T[2:]]
        return [start, end, *rest]


def _printable(name: str) -> str:
    """Names are shown in terminals, where control characters of a hostile trace would act."""
    return name if name.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _natural(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


_HOST_CODES = {category: code for code, category in enumerate(HOST)}
_DEVICE_CODES = {category: code for code, category in enumerate(DEVICE)}
# As they were called before PyTorch 1.13.
_HOST_CODES |= {"Operator": HOST.index("cpu_op"), "Runtime": HOST.index("cuda_runtime")}
_DEVICE_CODES |= {old: DEVICE.index(new) for old, new in zip(("Kernel", "Memcpy", "Memset"), DEVICE, strict=True)}
