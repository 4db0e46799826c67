"""A run as TensorBoard's event files, written by TensorBoard's own package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stepwatch.cli.export_tables import make_empty
from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.reader import Trace

_STEPS = 1000  # that TensorBoard shows of a curve


class _Value(NamedTuple):
    mode: str
    step: int
    time_ns: int
    tag: str
    value: float


def export_tensorboard(trace: Trace, destination: Path, ranks: Sequence[int] | None = None) -> int:
    """Write event files into a new directory, a folder per mode.

    Scalars keep their names. Of each tensor there are the curves ``rms/NAME``, its root mean square,
    and ``abs_max/NAME``, at no more than 1,000 of the saved steps.

    Args:
        trace: the run.
        destination: made, or empty.
        ranks: ranks that are written; the first where None. With several a folder is ``rank-N-MODE``.

    Returns:
        number of values.

    Raises:
        TraceError: the destination holds something.
        ImportError: the package tensorboard is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ModuleNotFoundError:
        raise ImportError("event files need tensorboard: pip install 'stepwatch[tensorboard]'") from None
    make_empty(destination)
    writers = {}
    count = 0
    chosen = list(ranks) if ranks else trace.ranks[:1]
    for number, value in ((rank, value) for rank in chosen for value in _values(trace, rank)):
        folder = f"rank-{number}-" * (len(chosen) > 1) + ("eval" if value.mode == "EVAL" else "train")
        if folder not in writers:
            writers[folder] = EventFileWriter(str(destination / folder))
        summary = Summary(value=[Summary.Value(tag=value.tag, simple_value=value.value)])
        writers[folder].add_event(Event(wall_time=value.time_ns / 1e9, step=value.step, summary=summary))
        count += 1
    for writer in writers.values():
        writer.close()
    return count


def _values(trace: Trace, rank: int) -> Iterator[_Value]:
    columns = ["mode", "step", "time_ns", "name", "value"]
    rows = trace.table("scalars", columns=columns, ranks=[rank])
    yield from map(_Value, *(rows[column].to_pylist() for column in columns))
    steps = np.unique(trace.table("stats", columns=["step"], ranks=[rank])["step"].to_numpy())
    kept = steps[np.linspace(0, len(steps) - 1, min(len(steps), _STEPS)).astype(int)]
    columns = ["mode", "step", "time_ns", "name", "numel", "l2", "abs_max"]
    for piece in TableCursor(trace, "stats", rank, columns).read():
        for row in piece.filter(pc.is_in(piece["step"], pa.array(kept))).to_pylist():
            key = row["mode"], row["step"], row["time_ns"]
            yield _Value(*key, f"rms/{row['name']}", row["l2"] / max(1, row["numel"]) ** 0.5)
            yield _Value(*key, f"abs_max/{row['name']}", row["abs_max"])
