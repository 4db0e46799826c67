"""The two encodings of an smdebug event file: framed records, and in them protobuf messages.

Only what such a file holds is understood; everything is checked against the bytes that are there before it is
used. The encodings are those of TensorFlow's record files and of https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import NoReturn

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


_HEADER = struct.Struct("<QI")
_crc_of_length = functools.lru_cache(maxsize=4096)(masked_crc)


def frame(payload: bytes) -> bytes:
    """A record: length, its checksum, payload, mark."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, struct.pack("<I", masked_crc(length)), payload, _PAYLOAD_MARK))


def unframe(record: bytes) -> tuple[int, int]:
    """Where the payload of a record that fills these bytes begins and ends.

    Raises:
        TraceError: the length, its checksum or the mark is wrong.
    """
    held = len(record) - HEADER_BYTES - FOOTER_BYTES
    if held < 0:
        damaged(f"a record of {len(record)} bytes; expected {HEADER_BYTES + FOOTER_BYTES} or more")
    length, crc = _HEADER.unpack_from(record)
    if crc != _crc_of_length(record[:8]):
        damaged("the length of a record does not have its checksum")
    if length != held:
        damaged(f"a record says that it holds {length} bytes; {held} are there")
    if not record.endswith(_PAYLOAD_MARK):
        damaged("a record does not end with the mark of an event file")
    return HEADER_BYTES, HEADER_BYTES + length


def records(content: bytes) -> Iterator[bytes]:
    """The framed records of a file.

    Raises:
        TraceError: one goes on beyond its end.
    """
    at = 0
    while at < len(content):
        if len(content) - at < HEADER_BYTES + FOOTER_BYTES:
            damaged(f"{len(content) - at} bytes after the last record")
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + HEADER_BYTES + length + FOOTER_BYTES
        if end > len(content):
            damaged(f"a record of {length} bytes; the file ends before")
        yield content[at:end]
        at = end


Field = tuple[int, int, int]
"""Number of a field; then an integer and -1, or where the bytes of anything else begin and end."""


def fields(data: bytes, at: int, end: int) -> list[Field]:
    """The fields of the message that lies in ``data[at:end]``.

    Raises:
        TraceError: it is not whole.
    """
    found = []
    while at < end:
        key = data[at]
        at += 1
        if key > 0x7F:
            key, at = _varint(data, at - 1, end)
        kind = key & 7
        if kind in _FIXED:
            size = _FIXED[kind]
        elif kind not in (VARINT, LENGTH):
            damaged(f"a field of wire type {kind}")
        elif at < end and data[at] < 0x80:  # most numbers are of one byte
            size = data[at]
            at += 1
        else:
            size, at = _varint(data, at, end)
        if kind == VARINT:
            found.append((key >> 3, size, -1))
        elif size > end - at:
            damaged(f"a field of {size} bytes where {end - at} are left")
        else:
            found.append((key >> 3, at, at + size))
            at += size
    return found


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
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
