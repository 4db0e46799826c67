"""One tensor of one step as an smdebug event file holds it."""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.smdebug.wire import (
    Field,
    bytes_field,
    damaged,
    double_field,
    fields,
    frame,
    unframe,
    varint_field,
)

_TEXT = 7
_MAX_DIMENSIONS = 64
_MAX_SHAPE_BYTES = 64 << 10
_MAX_DIGITS = 19
_TYPES = {
    code: np.dtype(name)
    for code, name in {
        **{1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 5: "<i2", 6: "|i1", 8: "<c8", 9: "<i8", 10: "|b1"},
        **{17: "<u2", 18: "<c16", 19: "<f2", 22: "<u4", 23: "<u8"},
    }.items()
}
_CODES = {dtype: code for code, dtype in _TYPES.items()}
_MODE_NUMBERS = {"TRAIN": "1", "EVAL": "2", "PREDICT": "3", "GLOBAL": "4"}
_DOUBLE = struct.Struct("<d")

_WIDER = {
    np.dtype(narrow): np.dtype(wide)
    for narrow, wide in (("i1", "i4"), ("i2", "i4"), ("u2", "i4"), ("u4", "i8"), ("u8", "f8"), ("c8", "c16"))
}
"""smdebug writes these types and cannot read them, or not rightly."""


@dataclass(frozen=True, slots=True)
class Event:
    """A tensor at a step.

    Attributes:
        name: of the tensor, or ``smdebug/reductions/REDUCTION/TENSOR``.
        value: its entries; text has the dtype ``U``.
        step: the global step.
        wall_time: seconds since the epoch.
    """

    name: str
    value: NDArray[Any]
    step: int
    wall_time: float


def decode(record: bytes) -> Event:
    """The event of a framed record; the mode and its count, which the index has too, are not looked at.

    Raises:
        TraceError: it is damaged, or holds something else than one tensor.
    """
    step, wall_time = 0, 0.0
    event = fields(record, *unframe(record))
    for number, start, stop in event:
        if number == 1 and stop - start == 8:
            (wall_time,) = _DOUBLE.unpack_from(record, start)
        elif number == 2 and stop < 0:
            step = start
    value = fields(record, *_only(fields(record, *_only(event, 5)), 1))
    name = _text(record[slice(*_only(value, 1))])
    return Event(name, _tensor(record, *_only(value, 8)), step, wall_time)


def decode_with_mode(record: bytes) -> tuple[Event, str, int]:
    """The event of a framed record with the name of its mode and its count within that.

    Raises:
        TraceError: it is damaged, or says no mode.
    """
    event = decode(record)
    value = fields(record, *_only(fields(record, *_only(fields(record, *unframe(record)), 5)), 1))
    notes: dict[str, str] = {}
    for number, start, stop in fields(record, *_only(value, 9)):
        if number == 1 and stop >= 0:
            note = fields(record, start, stop)
            notes[_text(record[slice(*_only(note, 1))])] = _text(record[slice(*_only(note, 2))])
    modes = {text: mode for mode, text in _MODE_NUMBERS.items()}
    mode, count = modes.get(notes.get("mode", "")), notes.get("mode_step", "")
    if mode is None or not count.removeprefix("-").isdigit() or len(count) > _MAX_DIGITS:
        damaged(f"a record of mode {notes.get('mode')!r:.20} and step {count!r:.20}")
    return event, mode, int(count)


def encode(event: Event, mode: str, mode_step: int) -> bytes:
    """The framed record of an event in a mode; types that smdebug cannot read are widened to ones that it can."""
    notes = b"".join(
        bytes_field(1, bytes_field(1, key) + bytes_field(2, text.encode()))
        for key, text in ((b"mode_step", str(mode_step)), (b"mode", _MODE_NUMBERS[mode]))
    )
    content = bytes_field(1, event.name.encode())
    content += bytes_field(8, _encoded_tensor(event.name, event.value)) + bytes_field(9, notes)
    step = varint_field(2, event.step) if event.step else b""
    return frame(double_field(1, event.wall_time) + step + bytes_field(5, bytes_field(1, content)))


def _tensor(record: bytes, at: int, end: int) -> NDArray[Any]:
    code, begin, length = 0, 0, 0
    shape: tuple[int, ...] = ()
    texts = []
    for number, start, stop in fields(record, at, end):
        if stop < 0:
            code = start if number == 1 else code
        elif number == 2:
            shape = _shape(record[start:stop])
        elif number == 4:
            begin, length = start, stop - start
        elif number == 8:
            texts.append(_text(record[start:stop]))
    if texts and code in (0, _TEXT):
        return np.array(texts)
    dtype = _TYPES.get(code)
    if dtype is None:
        damaged(f"a tensor of type {code}")
    if length != math.prod(shape) * dtype.itemsize:
        damaged(f"a tensor of shape {shape} and type {dtype.name} in {length} bytes")
    return np.frombuffer(record, dtype, length // dtype.itemsize, begin).reshape(shape)


@functools.lru_cache(maxsize=1024)
def _shape(message: bytes) -> tuple[int, ...]:
    if len(message) > _MAX_SHAPE_BYTES:
        damaged(f"a shape of {len(message)} bytes")
    shape = []
    for number, start, stop in fields(message, 0, len(message)):
        if number == 2 and stop >= 0:
            sizes = [size for inner, size, end in fields(message, start, stop) if inner == 1 and end < 0]
            shape.append(sizes[-1] if sizes else 0)
    if len(shape) > _MAX_DIMENSIONS:
        damaged(f"a tensor of {len(shape)} dimensions")
    return tuple(shape)


def _only(found: list[Field], number: int) -> tuple[int, int]:
    """Where the one field of that number lies."""
    places = [(start, stop) for each, start, stop in found if each == number and stop >= 0]
    if len(places) != 1:
        damaged(f"{len(places)} tensors or names of them in a record; expected one")
    return places[0]


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        damaged("a name or text that is not UTF-8")


def _encoded_tensor(name: str, value: NDArray[Any]) -> bytes:
    shape = b"".join(
        bytes_field(2, varint_field(1, size) + bytes_field(2, f"{name}_{size}".encode())) for size in value.shape
    )
    if value.dtype.kind == "U":
        return bytes_field(2, shape) + b"".join(bytes_field(8, str(text).encode()) for text in value.ravel())
    native = value.dtype.newbyteorder("=")
    array = value.astype(_WIDER.get(native, native).newbyteorder("<"), copy=False)
    code = varint_field(1, _CODES[array.dtype])
    return code + bytes_field(2, shape) + bytes_field(4, array.tobytes())
