"""A directory that smdebug wrote: which files it has, its index and its collections, finished or growing."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from stepwatch.probe.collections import Collection
from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.store import remote
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.smdebug.event import Event, decode

REDUCTION_PREFIX = "smdebug/reductions/"
END_FILE = "training_job_end.ts"
COLLECTIONS_FOLDER = Path("collections", "000000000")

_MAX_INDEX_BYTES = 256 << 20
_SILENT_SECONDS = 60.0
_PACES = 10
_UNKNOWN_PACE_SECONDS = 180.0
_LATEST = 5
_END = 1 << 63
_REFRESH_SECONDS = 2.0
_KEPT_FILE_BYTES = 4 << 20
_KEPT_BYTES = 64 << 20
_INDEX_NAME = re.compile(r"^(\d{1,18})_(.+)\.json$")
_COLLECTIONS_NAME = re.compile(r"^(.+)_collections\.json$")


_Place: TypeAlias = tuple[int, int]
_Places: TypeAlias = tuple[dict[str, _Place], dict[str, dict[tuple[str, bool], _Place]]]


@dataclass(frozen=True, slots=True)
class IndexedStep:
    """What one worker saved at one global step.

    Attributes:
        step, worker: from the name of the index file.
        mode, mode_step: mode and count within it.
        events: path of its event file below the directory; None where only shapes were saved.
        tensors: name -> (offset, length) of the tensor's record in the event file.
        reductions: name -> (reduction, of magnitudes) -> the same.
        shapes: name -> shape, where shapes were saved.

    Steps of one directory share ``tensors`` and ``reductions`` where they are equal.
    """

    step: int
    worker: str
    mode: str
    mode_step: int
    events: str | None
    tensors: dict[str, tuple[int, int]] = field(default_factory=dict)
    reductions: dict[str, dict[tuple[str, bool], tuple[int, int]]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Tensors of which something was saved, in saved order."""
        return list(dict.fromkeys([*self.tensors, *self.reductions, *self.shapes]))


def is_smdebug_directory(path: Path) -> bool:
    """Whether smdebug seems to have written it."""
    return (path / COLLECTIONS_FOLDER).is_dir() or ((path / "index").is_dir() and (path / "events").is_dir())


class SMDebugDirectory:
    """Reads a directory that smdebug wrote or is writing.

    Raises:
        TraceError: it is no such directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not is_smdebug_directory(self.path):
            raise TraceError(f"{self.path}: holds no index of smdebug; expected a directory that smdebug wrote")
        self._refreshed = time.monotonic()
        self._read: set[str] = set()
        self._latest: deque[IndexedStep] = deque(maxlen=_LATEST)
        self._files = _EventFiles(self.path)
        self._index_reader = _IndexReader()

    @property
    def ended(self) -> bool:
        """Whether the job said that it is over."""
        return (self.path / END_FILE).exists()

    def live(self) -> bool:
        """Whether more may come: the job has not said that it is over, which on SageMaker it never does, and has been
        silent for no longer than a minute, or than ten times what lay between its last steps where that is longer.
        """
        folders = [self.path / "index" / name for name in _names(self.path / "index")]
        newest = max((folder.stat().st_mtime for folder in folders), default=time.time())
        return not self.ended and time.time() - newest < max(_SILENT_SECONDS, _PACES * self._pace())

    def _pace(self) -> float:
        """Seconds between the last steps that were saved: the longest of a few; of a single step nobody knows."""
        times = sorted({step.step: self.wall_time(step) for step in self._latest}.values())
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return max(gaps, default=_UNKNOWN_PACE_SECONDS if times else 0.0)

    def wall_time(self, step: IndexedStep) -> float:
        """When a step was saved, seconds since the epoch; 0 where that cannot be read."""
        places = [*step.tensors.values(), *(each for kinds in step.reductions.values() for each in kinds.values())]
        try:
            return self.read(step, places[0]).wall_time if places else 0.0
        except (TraceError, OSError):
            return 0.0

    # -- steps ----------------------------------------------------------------------------------------

    def poll(self) -> list[IndexedStep]:
        """Steps that are new since the last call, by number and worker.

        Of a copy of a directory in an object store, those that the store had two seconds ago or later.

        Raises:
            TraceError: an index file is damaged.
            OSError: the store cannot be reached.
        """
        if time.monotonic() - self._refreshed > _REFRESH_SECONDS:
            remote.refresh(self.path)
            self._refreshed = time.monotonic()
        found = []
        index = os.path.join(self.path, "index")
        for folder in sorted(_names(index)):
            place = os.path.join(index, folder)
            for name in sorted(_names(place)):
                key = f"{folder}/{name}"
                if key not in self._read and (match := _INDEX_NAME.match(name)):
                    found.append(self._index_reader.read(f"{place}/{name}", int(match[1]), match[2]))
                    self._read.add(key)
        found.sort(key=lambda step: (step.step, step.worker))
        self._latest.extend({step.step: step for step in found[-_LATEST:]}.values())
        return found

    def read(self, step: IndexedStep, place: tuple[int, int]) -> Event:
        """The tensor at a place of a step's event file.

        Raises:
            TraceError: the file is damaged, or ends before the place.
            FileNotFoundError: there is no such file.
        """
        offset, length = place
        try:
            return decode(self._files.read(str(step.events), offset, length))
        except TraceError as error:
            raise TraceError(f"{self.path / str(step.events)}: at byte {offset}: {error}") from None

    # -- collections ----------------------------------------------------------------------------------

    def workers(self) -> int | None:
        """Number of workers that write; None until one has said so."""
        meta = self._collections().get("_meta", {})
        number = meta.get("num_workers") if isinstance(meta, dict) else None
        return number if isinstance(number, int) and number > 0 else None

    def worker_names(self) -> list[str]:
        """Names of the workers that have described their collections."""
        matches = (_COLLECTIONS_NAME.match(name) for name in _names(self.path / COLLECTIONS_FOLDER))
        return [_worker(match[1]) for match in matches if match]

    def collections(self) -> dict[str, Collection]:
        """The collections, as the first worker described them.

        Raises:
            TraceError: they are described otherwise than by smdebug.
        """
        found = {}
        content = self._collections().get("collections", {})
        try:
            for name, entry in content.items():
                patterns = [str(each) for each in entry.get("include_regex") or ()]
                found[name] = Collection(name, patterns, {str(each) for each in entry.get("tensor_names") or ()})
        except (AttributeError, TypeError, ValueError) as error:
            raise TraceError(f"{self.path}/collections: {error}") from None
        return found

    def collections_json(self) -> dict[str, Any]:
        """The collections with their configurations, as they are in the file."""
        content = self._collections().get("collections", {})
        return content if isinstance(content, dict) else {}

    def _collections(self) -> dict[str, Any]:
        folder = self.path / COLLECTIONS_FOLDER
        for name in sorted(_names(folder)):
            if _COLLECTIONS_NAME.match(name):
                return _read_object(folder / name)
        return {}


class _EventFiles:
    """Pieces of event files, which do not change once they are there.

    Small files of which a second piece is asked for are kept, as many as have room.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._asked: set[str] = set()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def read(self, path: str, offset: int, length: int) -> bytes:
        """So many bytes at an offset of a file, by its path below the folder.

        Raises:
            TraceError: the file ends before.
            FileNotFoundError: there is no such file.
        """
        content = self._kept.get(path)
        if content is not None:
            return _piece(content, offset, length)
        descriptor = os.open(os.path.join(self._folder, path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if offset + length > size:  # asked first: a length that lies must not become memory
                return _piece(b"", offset, length)
            if path in self._asked and size <= _KEPT_FILE_BYTES:
                content = self._keep(path, os.pread(descriptor, size, 0))
                return _piece(content, offset, length)
            self._asked.add(path)
            return _piece(os.pread(descriptor, length, offset), 0, length)
        finally:
            os.close(descriptor)

    def _keep(self, path: str, content: bytes) -> bytes:
        self._kept[path] = content
        self._bytes += len(content)
        while self._bytes > _KEPT_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped)
        return content


def _piece(content: bytes, offset: int, length: int) -> bytes:
    if offset + length > len(content):
        raise TraceError(f"the file ends before the {length} bytes that the index names")
    return content[offset : offset + length]


class _IndexReader:
    """Reads files of an index; what lies where is the same in most of them as in the one before, and then shared."""

    def __init__(self) -> None:
        self._payload: Any = None
        self._places: _Places = {}, {}

    def read(self, path: str, step: int, worker: str) -> IndexedStep:
        """What a file says of a worker's step.

        Raises:
            TraceError: it is damaged.
        """
        content = _read_object(path)
        try:
            meta = content["meta"]
            mode, mode_step, events = str(meta["mode"]), _count(meta["mode_step"]), meta.get("event_file_name")
            ModeKeys[mode]
            if events is not None and (not isinstance(events, str) or events.startswith(os.sep) or ".." in events):
                raise ValueError(f"event_file_name is {events!r}; expected a path below the directory")
            payload = content.get("tensor_payload")
            if payload != self._payload:
                self._places, self._payload = _places(payload or ()), payload
            found = IndexedStep(step, _worker(worker), mode, mode_step, events, *self._places)
            for entry in content.get("shape_payload") or ():
                found.shapes[_name(entry["tensorname"])] = tuple(_count(size) for size in entry["shape"])
        except KeyError as error:
            raise TraceError(f"{path}: has no or an unknown {error}; expected an index of smdebug") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise TraceError(f"{path}: {error}") from None
        return found


def _places(payload: Iterable[dict[str, Any]]) -> _Places:
    tensors: dict[str, _Place] = {}
    reductions: dict[str, dict[tuple[str, bool], _Place]] = {}
    for entry in payload:
        name, offset, length = entry["tensorname"], entry["start_idx"], entry["length"]
        if not (type(name) is str and name.isascii()):
            name = _name(name)
        if not (type(offset) is int and type(length) is int and 0 <= offset < _END and 0 <= length < _END):
            raise ValueError(f"{name} is at {offset!r:.40} with length {length!r:.40}; expected numbers from 0")
        if name.startswith(REDUCTION_PREFIX):
            tensor, reduction, of_magnitudes = split_reduction(name)
            reductions.setdefault(tensor, {})[reduction, of_magnitudes] = (offset, length)
        else:
            tensors[name] = (offset, length)
    return tensors, reductions


def _count(value: Any) -> int:
    if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{value!r:.40} where a number of 64 bits was expected")
    return value


def _name(value: Any) -> str:
    str(value).encode()  # half a character has no UTF-8, and can be stored nowhere
    return str(value)


def split_reduction(name: str) -> tuple[str, str, bool]:
    """Tensor, reduction and whether it is of magnitudes, of the name of a saved reduction."""
    reduction, _, tensor = name.removeprefix(REDUCTION_PREFIX).partition("/")
    return tensor, reduction.removeprefix("abs_"), reduction.startswith("abs_")


def reduction_name(tensor: str, reduction: str, of_magnitudes: bool) -> str:
    """Inverse of :func:`split_reduction`."""
    return f"{REDUCTION_PREFIX}{'abs_' if of_magnitudes else ''}{reduction}/{tensor}"


def reduction_dtype(dtype: str) -> np.dtype[Any]:
    """Type of a saved reduction of a tensor whose type has this name, which may be one that NumPy does not have."""
    try:
        return np.dtype(dtype or "float32")
    except TypeError:
        return np.dtype("float32")


def _worker(name: str) -> str:
    # TensorFlow's devices have slashes and colons, which file names spell otherwise.
    return name.replace("_", "/").replace("-", ":") if name.startswith("_") else name


def _read_object(path: str | Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_INDEX_BYTES:
            raise TraceError(f"{path}: has more than {_MAX_INDEX_BYTES} bytes")
        text = file.read()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise TraceError(f"{path}: holds a {type(content).__name__}; expected an object")
    return content


def _names(folder: str | Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
