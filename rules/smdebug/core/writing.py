"""Writes and reads single event files, as smdebug does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.errors import SMDebugNotImplementedError, SMDebugRuntimeError, SMDebugValueError
from stepwatch.probe.store.smdebug.event import Event, decode_with_mode, encode
from stepwatch.probe.store.smdebug.wire import records
from stepwatch.rules.smdebug.core.access import write_file
from stepwatch.rules.smdebug.core.locations import (
    IndexFileLocationUtils,
    TensorFileLocation,
    TensorLocation,
    TensorShape,
)
from stepwatch.rules.smdebug.core.utils import get_relative_event_file_path, make_numpy_array


class FileWriter:
    """Writes what one worker saves at one step: an event file and its index, both whole when it is closed.

    Args:
        trial_dir: the job's directory, or ``s3://bucket/prefix``.
        worker: name of the worker.
        step: global step.
        wtype: ``events``.
        mode: mode of the step, where tensors do not say.
        max_queue, flush_secs, verbose, write_checksum: change nothing.

    Raises:
        SMDebugNotImplementedError: another ``wtype``: files for TensorBoard are not written.
    """

    def __init__(
        self,
        trial_dir: str,
        worker: str,
        step: int = 0,
        wtype: str = "events",
        mode: ModeKeys = ModeKeys.GLOBAL,
        max_queue: int = 10,
        flush_secs: int = 120,
        verbose: bool = False,
        write_checksum: bool = False,
    ) -> None:
        if wtype != "events":
            raise SMDebugNotImplementedError(f"wtype is {wtype!r}; expected 'events': no other files are written")
        self.trial_dir, self.worker, self.step, self.mode = str(trial_dir), worker, int(step), mode
        self._events = TensorFileLocation(self.step, worker).get_file_location(self.trial_dir)
        self._records: list[bytes] = []
        self._tensors: list[TensorLocation] = []
        self._shapes: list[TensorShape] = []
        self._closed = False

    def write_tensor(
        self,
        tdata: Any,
        tname: str,
        write_index: bool = True,
        mode: ModeKeys = ModeKeys.GLOBAL,
        mode_step: int | None = None,
        timestamp: float | None = None,
    ) -> None:
        """Write a tensor, a number or a text; one without entries is left out, since nothing could read it.

        Raises:
            SMDebugValueError: what is no mode.
        """
        mode, number = self._mode_step(mode, mode_step)
        value: NDArray[Any] = make_numpy_array(tdata)
        if value.size == 0:
            return
        seconds = time.time() if timestamp is None else timestamp
        record = encode(Event(tname, value, self.step, seconds), mode.name, number)
        if write_index:
            start = sum(map(len, self._records))
            events = get_relative_event_file_path(self._events)
            self._tensors.append(TensorLocation(tname, mode, number, events, start, len(record), self.worker))
        self._records.append(record)

    def write_shape(
        self,
        name: str,
        shape: tuple[int, ...],
        mode: ModeKeys = ModeKeys.GLOBAL,
        mode_step: int | None = None,
        original_name: str | None = None,
    ) -> None:
        """Write the shape of a tensor."""
        self._shapes.append(TensorShape(name, *self._mode_step(mode, mode_step), shape, original_name))

    def name(self) -> str:
        """Path of the event file.

        Raises:
            SMDebugRuntimeError: nothing was written yet.
        """
        if not self._records:
            raise SMDebugRuntimeError("the event file has no name before a tensor is written")
        return self._events

    def flush(self) -> None:
        """Nothing: the files are written whole."""

    def close(self) -> None:
        """Write the event file, and then its index."""
        if self._closed:
            return
        self._closed = True
        if self._records:
            write_file(self._events, b"".join(self._records))
        if not self._tensors and not self._shapes:
            return
        first = (self._tensors or self._shapes)[0]
        meta: dict[str, Any] = {"mode": first.mode.name, "mode_step": first.mode_step}
        if self._tensors:
            meta["event_file_name"] = self._tensors[0].event_file_name
        index = {
            "meta": meta,
            "tensor_payload": [each.to_dict() for each in self._tensors],
            "shape_payload": [each.to_dict() for each in self._shapes],
        }
        place = IndexFileLocationUtils.get_index_key_for_step(self.trial_dir, self.step, self.worker)
        write_file(place, json.dumps(index).encode())

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _mode_step(self, mode: ModeKeys, mode_step: int | None) -> tuple[ModeKeys, int]:
        if not isinstance(mode, ModeKeys):
            raise SMDebugValueError(f"mode is {mode!r}; expected one of {', '.join(each.name for each in ModeKeys)}")
        mode = self.mode if mode is ModeKeys.GLOBAL else mode
        return mode, self.step if mode_step is None else int(mode_step)


class FileReader:
    """Reads an event file.

    Args:
        fname: the file.
        wtype: ``tfevent``.
    """

    def __init__(self, fname: str | os.PathLike[str], wtype: str = "tfevent") -> None:
        self._path = Path(fname)

    def read_tensors(self, check: str = "minimal") -> Iterator[tuple[str, int, NDArray[Any], ModeKeys, int]]:
        """Name, global step, value, mode and its step of every tensor.

        Raises:
            TraceError: the file is damaged.
        """
        for record in records(self._path.read_bytes()):
            event, mode, mode_step = decode_with_mode(record)
            yield event.name, event.step, event.value, ModeKeys[mode], mode_step

    read_events = read_tensors
