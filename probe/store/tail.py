"""The latest flushes of a rank once more, in a form that is read in microseconds.

Opening the small Parquet files of a flush costs a reader a millisecond and more. Who follows many live ranks reads
the tail instead, as long as it goes on from where they are, and the files otherwise: they alone are the trace, and the
tail holds nothing that is not in them already. It is gone when the rank has ended.

``RUN/tail/.rank=00000`` begins with ``MAGIC``, the attempt and how often it was begun anew, and goes on with a frame
for each flush: the lengths of its two parts, their checksum, JSON that says what there is, and the numbers as
little-endian float64. When it has grown large it becomes ``.rank=00000.old``, and another is begun. The names begin
with a dot so that nobody copies them.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.schema import STAT_COLUMNS

MAGIC = b"swtail1\n"
_HEAD = struct.Struct("<8sII")  # MAGIC, attempt, turn
_FRAME = struct.Struct("<III")  # bytes of JSON, bytes of numbers, crc32 of both
_TURN_BYTES = 512 << 10
_MOST_RECORDS = 64
_MOST_BYTES = 2 << 20
_LONGEST = _TURN_BYTES + 2 * _MOST_BYTES  # of a file


@dataclass(frozen=True, slots=True)
class Frame:
    """A flush.

    Attributes:
        flush: its number, as in the names of the files.
        rows: rows that it wrote, by table.
        records: its steps, without whole tensors; None where there are many, or much: then the files are to be read.
    """

    flush: int
    rows: Mapping[str, int]
    records: Sequence[StepRecord] | None


def tail_file(run_dir: Path, rank: int) -> Path:
    """Where the tail of a rank is."""
    return run_dir / "tail" / f".rank={rank:05d}"


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


class TailWriter:
    """Appends each flush of a rank when its files are there.

    What cannot be written is left out: readers then find a gap, and read the files.

    Args:
        run_dir: the run's directory.
        rank: the rank.
        attempt: the attempt that writes.
    """

    def __init__(self, run_dir: Path, rank: int, attempt: int) -> None:
        self._path = tail_file(run_dir, rank)
        self._attempt = attempt
        self._turn = -1
        self._size = _TURN_BYTES
        self._names: dict[tuple[str, ...], int] = {}

    def append(self, flush: int, rows: Mapping[str, int], records: Sequence[StepRecord]) -> None:
        """A flush is in its files."""
        try:
            if self._size >= _TURN_BYTES:
                self._begin_turn()
            frame = self._encode(flush, rows, [record for record in records if not record.late])
            self._write("ab", frame)
        except OSError:
            self._size = _TURN_BYTES  # part of it may be there: the next one begins anew

    def close(self) -> None:
        """The rank has ended, and all is in the files."""
        for path in (_old(self._path), self._path):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            self._path.parent.rmdir()

    def _begin_turn(self) -> None:
        self._turn += 1
        self._names = {}
        self._size = 0
        self._path.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            os.replace(self._path, _old(self._path))
        self._write("wb", _HEAD.pack(MAGIC, self._attempt, self._turn))

    def _write(self, mode: str, content: bytes) -> None:
        # Opened each time: a reader on another machine sees what was written when the file is closed.
        with self._path.open(mode, buffering=0) as file:
            if file.write(content) != len(content):
                raise OSError("the file could be written in part only")
        self._size += len(content)

    def _encode(self, flush: int, rows: Mapping[str, int], records: Sequence[StepRecord]) -> bytes:
        content: dict[str, Any] = {"flush": flush, "rows": dict(rows)}
        numbers: list[NDArray[np.float64]] = []
        if len(records) <= _MOST_RECORDS and sum(map(_bytes_of, records)) <= _MOST_BYTES:
            fresh = [names for names in {record.names: None for record in records} if names not in self._names]
            for names in fresh:
                self._names[names] = len(self._names)
            content |= {"names": fresh, "records": [self._entry(record, numbers) for record in records]}
        said = json.dumps(content, separators=(",", ":")).encode()
        data = b"".join([array.astype("<f8", copy=False).tobytes() for array in numbers])
        return _FRAME.pack(len(said), len(data), zlib.crc32(data, zlib.crc32(said))) + said + data

    def _entry(self, record: StepRecord, numbers: list[NDArray[np.float64]]) -> list[Any]:
        """What JSON says of a record; its numbers are appended to ``numbers``."""
        if record.scalars:
            numbers.append(np.array([value for _, value in record.scalars], dtype=np.float64))
        if record.stats is not None:
            numbers.append(record.stats)
        numbers += [vector for _, _, vector in record.derived]
        return [
            record.step,
            record.mode,
            record.mode_step,
            record.time_ns,
            int(record.saved),
            {name: int(value) for name, value in record.timing.items() if value is not None},
            [name for name, _ in record.scalars],
            self._names[record.names] if record.stats is not None else None,
            [[name, quantity, len(vector)] for name, quantity, vector in record.derived],
        ]


def _bytes_of(record: StepRecord) -> int:
    stats = 0 if record.stats is None else record.stats.nbytes
    return stats + sum(vector.nbytes for _, _, vector in record.derived)


class Tail:
    """A rank's tail for some readers, who all get each frame.

    Args:
        run_dir: the run's directory.
        rank: the rank.
        attempt: the attempt that is followed.
    """

    def __init__(self, run_dir: Path, rank: int, attempt: int) -> None:
        path = tail_file(run_dir, rank)
        self._path, self._old_path = str(path), str(_old(path))
        self._attempt = attempt
        self._go_to(0)
        self._readers: list[deque[Frame]] = []

    def open(self) -> deque[Frame]:
        """What comes from now on for one more reader, who takes it from there."""
        frames: deque[Frame] = deque()
        self._readers.append(frames)
        return frames

    def read(self) -> None:
        """Read what was appended."""
        turn = self._read_on(self._path)
        if turn > self._turn:
            if self._read_on(self._old_path) > self._turn:
                self._go_to(turn - 1)
                self._read_on(self._old_path)
            self._go_to(turn)
            self._read_on(self._path)

    def _go_to(self, turn: int) -> None:
        self._turn = turn
        self._offset = _HEAD.size
        self._names: list[tuple[str, ...]] = []

    def _read_on(self, path: str) -> int:
        """Read on, if the file is of this turn; returns of which it is, -1 where it is of none of this attempt."""
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return -1
        try:
            head = os.pread(file, _HEAD.size, 0)
            magic, attempt, turn = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0, 0)
            if (magic, attempt) != (MAGIC, self._attempt):
                return -1
            if turn == self._turn and (fresh := os.fstat(file).st_size - self._offset) > 0:
                self._offset += self._parse(memoryview(os.pread(file, min(fresh, _LONGEST), self._offset)))
            return int(turn)
        except OSError:
            return -1
        finally:
            os.close(file)

    def _parse(self, data: memoryview) -> int:
        """Take the whole frames at the beginning; returns how many bytes they are."""
        at = 0
        while len(data) - at >= _FRAME.size:
            said, numbers, checksum = _FRAME.unpack_from(data, at)
            middle = at + _FRAME.size + said
            end = middle + numbers
            if end > len(data) or zlib.crc32(data[at + _FRAME.size : end]) != checksum:
                break
            frame = self._decode(json.loads(str(data[at + _FRAME.size : middle], "utf-8")), data[middle:end])
            for frames in self._readers:
                frames.append(frame)
            at = end
        return at

    def _decode(self, content: dict[str, Any], data: memoryview) -> Frame:
        entries = content.get("records")
        if entries is None:
            return Frame(content["flush"], content["rows"], None)
        self._names += map(tuple, content["names"])
        numbers = np.frombuffer(data, dtype="<f8")
        records, at = [], 0
        for step, mode, mode_step, time_ns, saved, timing, scalars, names, derived in entries:
            record = StepRecord(step, mode, mode_step, time_ns, timing=timing, saved=bool(saved))
            if scalars:
                end = at + len(scalars)
                record.scalars = list(zip(scalars, numbers[at:end].tolist(), strict=True))
                at = end
            if names is not None:
                record.names = self._names[names]
                end = at + len(record.names) * len(STAT_COLUMNS)
                record.stats = numbers[at:end].reshape(-1, len(STAT_COLUMNS))
                at = end
            for name, quantity, length in derived:
                record.derived.append((name, quantity, numbers[at : at + length]))
                at += length
            records.append(record)
        return Frame(content["flush"], content["rows"], records)


class Tails:
    """The tails of a run's ranks.

    Args:
        run_dir: the run's directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._known: dict[int, tuple[int, Tail]] = {}

    def reader(self, rank: int, attempt: int) -> TailReader:
        """One more reader of an attempt's tail, of which the others have read nothing yet."""
        known = self._known.get(rank)
        if known is None or known[0] != attempt:
            known = self._known[rank] = (attempt, Tail(self._run_dir, rank, attempt))
        return TailReader(known[1])


class TailReader:
    """Position in a rank's tail.

    Args:
        tail: the tail; all who read the same one have its frames read once.
    """

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._frames = tail.open()

    def beginning(self, flush: int) -> int | None:
        """The first flush from this one on that is there; None where there is none."""
        if not self._frames:
            self._tail.read()
        while self._frames and self._frames[0].flush < flush:
            self._frames.popleft()
        return self._frames[0].flush if self._frames else None

    def take(self, flush: int) -> Iterator[Frame]:
        """Frames that go on from a flush without a gap, each once."""
        while self.beginning(flush) == flush:
            yield self._frames.popleft()
            flush += 1
            if not self._frames:
                return

    @property
    def waiting(self) -> bool:
        """Whether there is more than :meth:`take` could give: a gap is before it."""
        return bool(self._frames)
