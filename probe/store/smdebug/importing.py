"""Turns a directory that smdebug wrote into a run of ours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.collections import Collection
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.layout import end_file, write_json
from stepwatch.probe.store.rankfile import read_json
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import REDUCTION_QUANTITY, SHAPE_QUANTITY, SMDEBUG_CONFIG, STAT_COLUMNS
from stepwatch.probe.store.smdebug.directory import IndexedStep, SMDebugDirectory
from stepwatch.probe.store.smdebug.event import decode
from stepwatch.probe.store.writer import TraceWriter

UNKNOWN_HOST = "unknown"
"""Host of a run that was imported: where the job ran smdebug does not say."""

_CHUNK_BYTES = 64 << 20
_SCALAR_COLLECTIONS = {"losses", "metrics", "sm_metrics"}


def import_smdebug(source: Path, destination: Path) -> None:
    """Write what is in a directory of smdebug by now as a run that is over; see :class:`Importer`.

    Raises:
        TraceError: the source is damaged, no such directory, or without any step; or the destination holds something.
    """
    importer = Importer(source, destination)
    importer.poll()
    importer.finish()


class Importer:
    """Writes what comes into a directory of smdebug as a run.

    Whole tensors are kept whole, with statistics beside them; saved reductions and shapes become derived
    quantities; losses, metrics and logged numbers become scalars as well.

    Args:
        source: a directory that smdebug wrote, or is writing.
        destination: directory of the run; made, or empty.

    Raises:
        TraceError: the source is no such directory, or the destination holds something.
    """

    def __init__(self, source: Path, destination: Path) -> None:
        self.directory = SMDebugDirectory(source)
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise TraceError(f"{destination}: holds something already; expected a new directory")
        self._destination = destination
        self._writers: dict[str, tuple[TraceWriter, _Describer]] = {}
        self._last: dict[str, IndexedStep] = {}
        self._origin: dict[str, Any] = {}

    def poll(self) -> None:
        """Write what is new.

        Raises:
            TraceError: it is damaged, or there is still nothing.
        """
        steps = self.directory.poll()
        if not steps and not self._last:
            raise TraceError(f"{self.directory.path}: smdebug has saved no step there")
        self._origin["collections"] = self.directory.collections_json()
        try:
            for worker in sorted({step.worker for step in steps}):
                own = [step for step in steps if step.worker == worker]
                self._last[worker] = own[-1]
                writer, describe = self._writers.get(worker) or self._new_writer(worker, own[0])
                describe.collections = self.directory.collections()
                _write(writer, self.directory, own, describe)
        except BaseException:
            for writer, _ in self._writers.values():
                writer.close("exception", "the import failed")
            raise
        write_origin(self._destination, {**self._origin, "workers": list(self._writers)})

    def finish(self) -> None:
        """No more will come: the run is over, and was when the last step was saved."""
        for rank, (worker, (writer, _)) in enumerate(self._writers.items()):
            if rank == 0 and not self.directory.ended:
                writer.note("smdebug had not marked the end of the job when it was read")
            writer.close("finished", last_step=self._last[worker].step)
            path = end_file(self._destination, rank)
            write_json(path, {**read_json(path), "time_ns": _wall_time_ns(self.directory, self._last[worker])})

    def _new_writer(self, worker: str, first: IndexedStep) -> tuple[TraceWriter, _Describer]:
        start_ns = _wall_time_ns(self.directory, first)
        place = f"{self.directory.path.resolve()} {start_ns}"
        info: dict[str, Any] = {
            "run_id": hashlib.sha1(place.encode()).hexdigest()[:32],  # the same whenever it is read
            "job_name": self.directory.path.resolve().name,
            "host": UNKNOWN_HOST,
            "command": [],
            "world_size": self.directory.workers() or 1,
            "start_ns": start_ns,
        }
        rank = len(self._writers)
        writer = TraceWriter(self._destination, rank=rank, run_info=info, queue_bytes=1 << 50, flush_bytes=1 << 50)
        writer.set_start_step(0)
        self._writers[worker] = writer, _Describer(writer.describe)
        return self._writers[worker]


def write_origin(run: Path, origin: dict[str, Any]) -> None:
    """Say in run.json that a run is of smdebug: queries of it answer as smdebug would.

    Args:
        run: directory of the run.
        origin: ``workers``, their names by rank or None, and ``collections``, as smdebug describes them in JSON.
    """
    path = run / "run.json"
    content = read_json(path)
    if content["config"].get(SMDEBUG_CONFIG) != origin:
        content["config"][SMDEBUG_CONFIG] = origin
        write_json(path, content)


def _write(writer: TraceWriter, directory: SMDebugDirectory, steps: list[IndexedStep], describe: _Describer) -> None:
    interned: dict[tuple[str, ...], tuple[str, ...]] = {}
    for chunk in _chunks(directory, steps, writer.note):
        measured = _measure([values for _, _, values, _ in chunk])
        for index, (step, time_ns, values, reductions) in enumerate(chunk):
            describe.see(step, values, reductions)
            names = tuple(name for name in values if (index, name) in measured)
            record = StepRecord(step.step, step.mode, step.mode_step, time_ns, interned.setdefault(names, names))
            record.saved = True
            if names:
                record.stats = np.stack([measured[index, name] for name in names])
            record.values = list(values.items())
            unmeasured = {name: value.shape for name, value in values.items() if name not in names}
            shapes = {**step.shapes, **unmeasured}
            record.scalars = [
                (name, float(values[name].mean()))
                for name in names
                if name.startswith("scalar/") or not _SCALAR_COLLECTIONS.isdisjoint(describe.members(name))
            ]
            record.derived = [
                *((name, quantity, value.astype(np.float64).ravel()) for name, quantity, value in reductions),
                *((name, SHAPE_QUANTITY, np.array(shape, np.float64)) for name, shape in shapes.items()),
            ]
            writer.submit(record)
        writer.flush()


Read = tuple[IndexedStep, int, dict[str, NDArray[Any]], list[tuple[str, str, NDArray[Any]]]]


def _chunks(
    directory: SMDebugDirectory, steps: list[IndexedStep], note: Callable[[str], object]
) -> Iterator[list[Read]]:
    """What the steps hold, as many at a time as fit in memory; each with the time at which it was saved."""
    chunk: list[Read] = []
    size = 0
    for step in steps:
        values: dict[str, NDArray[Any]] = {}
        reductions: list[tuple[str, str, NDArray[Any]]] = []
        time_ns = 0
        content = _event_file(directory, step, note)
        if content is None:
            chunk.append((step, time_ns, values, reductions))
            continue
        for name, place in step.tensors.items():
            event = _event(directory, step, content, place)
            values[name] = event.value
            time_ns = time_ns or int(event.wall_time * 1e9)
        for name, places in step.reductions.items():
            for (reduction, of_magnitudes), place in places.items():
                event = _event(directory, step, content, place)
                quantity = f"{REDUCTION_QUANTITY}{'abs_' if of_magnitudes else ''}{reduction}"
                reductions.append((name, quantity, event.value))
                time_ns = time_ns or int(event.wall_time * 1e9)
        chunk.append((step, time_ns, values, reductions))
        size += len(content)
        if size > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    yield chunk


def _event_file(directory: SMDebugDirectory, step: IndexedStep, note: Callable[[str], object]) -> bytes | None:
    if step.events is None:
        return b""
    try:
        return (directory.path / step.events).read_bytes()
    except FileNotFoundError:
        note(f"{step.events} is missing: the tensors of step {step.step} of {step.worker} are left out")
        return None


def _event(directory: SMDebugDirectory, step: IndexedStep, content: bytes, place: tuple[int, int]) -> Any:
    offset, length = place
    try:
        return decode(content[offset : offset + length])
    except TraceError as error:
        raise TraceError(f"{directory.path / str(step.events)}: at byte {offset}: {error}") from None


def _wall_time_ns(directory: SMDebugDirectory, step: IndexedStep) -> int:
    return int(directory.wall_time(step) * 1e9)


class _Describer:
    """Tells the writer of each tensor once: its collections, shape, type and place in the order of recording."""

    def __init__(self, describe: Callable[[TensorInfo], None]) -> None:
        self.collections: Mapping[str, Collection] = {}
        self._describe = describe
        self._known: dict[str, TensorInfo] = {}

    def see(
        self, step: IndexedStep, values: Mapping[str, NDArray[Any]], reductions: list[tuple[str, str, NDArray[Any]]]
    ) -> None:
        dtypes = {name: value.dtype.name for name, _, value in reductions}
        for name in step.names():
            if name in self._known:
                continue
            members = {each.name for each in self.collections.values() if each.matches(name)}
            value = values.get(name)
            parameter = self._known.get(name.removeprefix("gradient/"))
            info = TensorInfo(
                name,
                shape=step.shapes.get(name, ()) if value is None else value.shape,
                dtype=dtypes.get(name, "") if value is None else value.dtype.name,
                collections=tuple(sorted(members)),
                order=len(self._known) if parameter is None else parameter.order,
            )
            self._known[name] = info
            self._describe(info)

    def members(self, name: str) -> tuple[str, ...]:
        return self._known[name].collections


def _measure(steps: list[dict[str, NDArray[Any]]]) -> dict[tuple[int, str], NDArray[np.float64]]:
    """Statistics of every tensor of numbers, by (index of the step, name)."""
    alike: dict[tuple[str, tuple[int, ...], np.dtype[Any]], list[int]] = {}
    for index, values in enumerate(steps):
        for name, value in values.items():
            if value.dtype.kind in "fiub":
                alike.setdefault((name, value.shape, value.dtype), []).append(index)
    found = {}
    for (name, _, _), indices in alike.items():
        matrix = statistics(np.stack([steps[index][name].ravel() for index in indices]))
        found.update({(index, name): row for index, row in zip(indices, matrix, strict=True)})
    return found


def statistics(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Statistics of tensors of one size.

    Args:
        rows: real numbers [tensors, entries].

    Returns:
        [tensors, len(STAT_COLUMNS)], as the ``stats`` table has them.
    """
    entries = rows.astype(np.float64)
    nan, infinite = np.isnan(entries), np.isinf(entries)
    finite = ~(nan | infinite)
    magnitudes = np.where(finite, np.abs(entries), 0.0)
    count = finite.sum(1)
    out = np.empty((len(rows), len(STAT_COLUMNS)))
    none = np.where(count, 1.0, np.nan)  # of no finite entry these are not defined
    mean = np.where(finite, entries, 0.0).sum(1) / np.maximum(count, 1) * none
    spread = np.where(finite, entries - mean[:, None], 0.0) if rows.size else entries
    columns = {
        "numel": np.full(len(rows), rows.shape[1]),
        "n_nan": nan.sum(1),
        "n_inf": infinite.sum(1),
        "n_zero": (entries == 0).sum(1),
        "min": np.where(finite, entries, np.inf).min(1, initial=np.inf) * none,
        "max": np.where(finite, entries, -np.inf).max(1, initial=-np.inf) * none,
        "mean": mean,
        "std": np.sqrt((spread * spread).sum(1) / np.maximum(count, 1)) * none,
        "l1": magnitudes.sum(1),
        "l2": np.sqrt((magnitudes * magnitudes).sum(1)),
        "abs_max": magnitudes.max(1, initial=0.0) * none,
    }
    for index, name in enumerate(STAT_COLUMNS):
        out[:, index] = columns[name]
    return out
