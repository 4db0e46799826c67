"""Scalars in the log of an offline run of Weights & Biases.

The file is framed as LevelDB's log: blocks of 32 KiB, in them pieces of records, each with a checksum, a length and
whether it is whole, first, middle or last. A record is a message of W&B's own, read by its client's definitions.
Sources: doc/log_format.md of LevelDB; wandb/proto/wandb_internal.proto.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from stepwatch.probe.store.errors import TraceError
from stepwatch.rules.scalar_logs import Point

_HEADER = struct.Struct("<4sHB")
_IDENTITY = (b":W&B", 0xBEE1)
_PIECE = struct.Struct("<IHB")
_BLOCK = 32768
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def offline_run(path: Path) -> Path | None:
    """The log of an offline run that a path names: the file, or the one in its folder; None for anything else."""
    if path.is_dir():
        logs = sorted(path.glob("run-*.wandb"))
        return logs[0] if len(logs) == 1 else None
    return path if path.suffix == ".wandb" else None


def read_offline_run(log: Path) -> list[Point]:
    """Scalars of an offline run; a record that is still being written is left out.

    Raises:
        TraceError: the file is something else.
        ImportError: wandb is not installed.
    """
    try:
        from google.protobuf.message import DecodeError
        from wandb.proto.wandb_internal_pb2 import Record
    except ModuleNotFoundError:
        raise ImportError("an offline run of W&B needs its client: pip install 'stepwatch[wandb]'") from None
    points: list[Point] = []
    for data in _records(log):
        try:
            record = Record.FromString(data)
        except DecodeError:
            raise TraceError(f"{log}: holds a record that is not one of W&B's") from None
        if record.WhichOneof("record_type") != "history":
            continue
        items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        step = record.history.step.num or int(_number(items.get("_step", "0")) or 0)
        for name, text in items.items():
            value = None if name.startswith("_") else _number(text)
            if value is not None:
                points.append(Point(step, "TRAIN", name, value))
    return points


def _number(text: str) -> float | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if isinstance(value, str) and value.lower() in ("nan", "infinity", "-infinity"):
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _records(log: Path) -> Iterator[bytes]:
    with log.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or _HEADER.unpack(head)[:2] != _IDENTITY:
            raise TraceError(f"{log}: not the log of an offline run of W&B")
        block = head + file.read(_BLOCK - _HEADER.size)
        at, parts = _HEADER.size, b""
        while block:
            while at + _PIECE.size <= len(block):
                _, length, kind = _PIECE.unpack_from(block, at)
                piece = block[at + _PIECE.size : at + _PIECE.size + length]
                if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or len(piece) < length:
                    return  # the end of what has been written
                at += _PIECE.size + length
                parts = piece if kind in (_WHOLE, _FIRST) else parts + piece
                if kind in (_WHOLE, _LAST):
                    yield parts
            block, at = file.read(_BLOCK), 0
