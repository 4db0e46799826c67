"""One tensor of one step as an smdebug event file holds it."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.smdebug.wire import (
    Message,
    bytes_field,
    damaged,
    double_field,
    frame,
    parse,
    unframe,
    varint_field,
)

_NOTHING = memoryview(b"")
_TEXT = 7
_MAX_DIMENSIONS = 64
_COUNT = re.compile(r"-?[0-9]{1,18}\Z")
_TYPES = {
    code: np.dtype(name)
    for code, name in {
        **{1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 5: "<i2", 6: "|i1", 8: "<c8", 9: "<i8", 10: "|b1"},
        **{17: "<u2", 18: "<c16", 19: "<f2", 22: "<u4", 23: "<u8"},
    }.items()
}
_CODES = {dtype: code for code, dtype in _TYPES.items()}
_MODES = {"1": "TRAIN", "2": "EVAL", "3": "PREDICT", "4": "GLOBAL"}
_MODE_NUMBERS = {name: number for number, name in _MODES.items()}

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
        mode, mode_step: name of the mode and count within it.
        wall_time: seconds since the epoch.
    """

    name: str
    value: NDArray[Any]
    step: int
    mode: str
    mode_step: int
    wall_time: float


def decode(record: bytes) -> Event:
    """The event of a framed record.

    Raises:
        TraceError: it is damaged, or holds something else than one tensor.
    """
    event = parse(unframe(record))
    value = parse(_only(parse(_only(event, 5)), 1))
    name = _text(_only(value, 1))
    notes = _notes(parse(_last(value, 9)))
    wall_time = _last(event, 1)
    mode = _MODES.get(notes.get("mode", "4"))
    mode_step = notes.get("mode_step", "0")
    if mode is None or not _COUNT.match(mode_step):
        damaged(f"mode {notes.get('mode')!r} and step {mode_step!r} of it")
    return Event(
        name=name,
        value=_tensor(parse(_only(value, 8))),
        step=event.numbers.get(2, 0),
        mode=mode,
        mode_step=int(mode_step),
        wall_time=struct.unpack("<d", wall_time)[0] if len(wall_time) == 8 else 0.0,
    )


def encode(event: Event) -> bytes:
    """The framed record of an event; types that smdebug cannot read are widened to ones that it can."""
    notes = b"".join(
        bytes_field(1, bytes_field(1, key) + bytes_field(2, text.encode()))
        for key, text in ((b"mode_step", str(event.mode_step)), (b"mode", _MODE_NUMBERS[event.mode]))
    )
    content = bytes_field(1, event.name.encode())
    content += bytes_field(8, _encoded_tensor(event.name, event.value)) + bytes_field(9, notes)
    step = varint_field(2, event.step) if event.step else b""
    return frame(double_field(1, event.wall_time) + step + bytes_field(5, bytes_field(1, content)))


def _tensor(message: Message) -> NDArray[Any]:
    code, texts = message.numbers.get(1, 0), message.contents.get(8)
    if texts and code in (0, _TEXT):
        return np.array([_text(text) for text in texts])
    if code not in _TYPES:
        damaged(f"a tensor of type {code}")
    dtype = _TYPES[code]
    raw, dimensions = _last(message, 4), parse(_last(message, 2)).contents.get(2, [])
    shape = [parse(dimension).numbers.get(1, 0) for dimension in dimensions[: _MAX_DIMENSIONS + 1]]
    if len(shape) > _MAX_DIMENSIONS or len(raw) != math.prod(shape) * dtype.itemsize:
        damaged(f"a tensor of shape {shape} and type {dtype.name} in {len(raw)} bytes")
    return np.frombuffer(raw, dtype).reshape(shape)


def _notes(message: Message) -> dict[str, str]:
    entries = [parse(entry) for entry in message.contents.get(1, ())]
    return {str(_last(entry, 1), "latin-1"): str(_last(entry, 2), "latin-1") for entry in entries}


def _only(message: Message, number: int) -> memoryview:
    found = message.contents.get(number, ())
    if len(found) != 1:
        damaged(f"{len(found)} tensors or names of them in a record; expected one")
    return found[0]


def _last(message: Message, number: int) -> memoryview:
    found = message.contents.get(number)
    return found[-1] if found else _NOTHING


def _text(content: memoryview) -> str:
    try:
        return str(content, "utf-8")
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
