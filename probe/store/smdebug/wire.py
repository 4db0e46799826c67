"""The two encodings of an smdebug event file: framed records, and in them protobuf messages.

Only what such a file holds is understood; everything is checked against the bytes that are there before it is
used. The encodings are those of TensorFlow's record files and of https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, NoReturn

from stepwatch.probe.store.errors import TraceError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}

HEADER_BYTES, FOOTER_BYTES = 12, 4
_PAYLOAD_MARK = b"\xb3\xc0\x2d\x06"
"""smdebug's event files hold this where the checksum of the payload belongs, and it reads no others."""


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(crc)
    return tuple(table)


_CRC_TABLE = _crc_table()


def masked_crc(data: bytes) -> int:
    """CRC-32C as record files store it: rotated and offset."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """A record: length, its checksum, payload, mark."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, struct.pack("<I", masked_crc(length)), payload, _PAYLOAD_MARK))


def unframe(record: bytes) -> memoryview:
    """The payload of a record that fills these bytes.

    Raises:
        TraceError: the length, its checksum or the mark is wrong.
    """
    if len(record) < HEADER_BYTES + FOOTER_BYTES:
        damaged(f"a record of {len(record)} bytes; expected {HEADER_BYTES + FOOTER_BYTES} or more")
    length, crc = struct.unpack_from("<QI", record)
    if crc != masked_crc(record[:8]):
        damaged("the length of a record does not have its checksum")
    if length != len(record) - HEADER_BYTES - FOOTER_BYTES:
        damaged(f"a record says that it holds {length} bytes; {len(record) - HEADER_BYTES - FOOTER_BYTES} are there")
    if record[-FOOTER_BYTES:] != _PAYLOAD_MARK:
        damaged("a record does not end with the mark of an event file")
    return memoryview(record)[HEADER_BYTES:-FOOTER_BYTES]


class Message(NamedTuple):
    """Fields of a protobuf message by number.

    Attributes:
        numbers: integers; of several the last.
        contents: bytes of everything else, in order.
    """

    numbers: dict[int, int]
    contents: dict[int, list[memoryview]]


def parse(message: memoryview) -> Message:
    """The fields of a message.

    Raises:
        TraceError: it is not whole.
    """
    found = Message({}, {})
    at, end = 0, len(message)
    while at < end:
        key = message[at]
        if key < 0x80:
            at += 1
        else:
            key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            found.numbers[key >> 3], at = _varint(message, at)
            continue
        if kind == LENGTH:
            size, at = _varint(message, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            damaged(f"a field of wire type {kind}")
        if size > end - at:
            damaged(f"a field of {size} bytes where {end - at} are left")
        found.contents.setdefault(key >> 3, []).append(message[at : at + size])
        at += size
    return found


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    damaged("a number that does not end")


def varint_field(number: int, value: int) -> bytes:
    """A field with an integer that is not negative."""
    return _encoded(number << 3 | VARINT) + _encoded(value)


def bytes_field(number: int, content: bytes) -> bytes:
    """A field with bytes, text or another message."""
    return _encoded(number << 3 | LENGTH) + _encoded(len(content)) + content


def double_field(number: int, value: float) -> bytes:
    """A field with a double."""
    return _encoded(number << 3 | FIXED64) + struct.pack("<d", value)


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def damaged(what: str) -> NoReturn:
    """Refuse what is no event file of smdebug.

    Raises:
        TraceError: always.
    """
    raise TraceError(f"not an event of smdebug: {what}")
