"""Writes a run as a directory that smdebug opens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import REDUCTION_QUANTITY, SHAPE_QUANTITY, SMDEBUG_CONFIG
from stepwatch.probe.store.smdebug.directory import COLLECTIONS_FOLDER, END_FILE, reduction_dtype, reduction_name
from stepwatch.probe.store.smdebug.event import Event, encode

_STEPS_AT_A_TIME = 100
_CAPTURED = re.compile(r"_output_\d+$")
_REDUCTIONS = ("min", "max", "mean", "std", "l1", "l2", "abs_max")
"""Columns of ``stats`` that are reductions of smdebug, of tensors that hold no NaN or infinity."""

Key = tuple[int, str, int]


def export_smdebug(trace: Trace, destination: Path) -> int:
    """Write a run so that smdebug opens it.

    A global step is smdebug's: one per training step or evaluation, in recorded order, where ours gives an
    evaluation the step that it follows; of a run that smdebug recorded they are as they were. Whole tensors are
    written whole, scalars as tensors of one entry, and the statistics of other tensors as saved reductions.

    Args:
        trace: the run.
        destination: the directory; made, or empty.

    Returns:
        Number of steps written.

    Raises:
        TraceError: the destination holds something.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise TraceError(f"{destination}: holds something already; expected a new directory")
    known = trace.info.config.get(SMDEBUG_CONFIG)
    workers = (known or {}).get("workers") or [f"worker_{rank}" for rank in trace.ranks]
    collections = known["collections"] if known else _collections(trace)
    written: set[int] = set()
    numbers = _global_steps(trace, as_recorded=known is not None)
    for rank, worker in zip(trace.ranks, workers, strict=True):
        for key, events in _events(trace, rank, as_recorded=known is not None):
            if events[0] or events[1]:
                _write_step(destination, numbers[key], worker, key, *events)
                written.add(numbers[key])
        content = {"collections": collections, "_meta": {"num_workers": len(workers)}}
        _write(
            destination / COLLECTIONS_FOLDER / f"{_file_name(worker)}_collections.json", json.dumps(content).encode()
        )
    if not trace.live():
        _write(destination / END_FILE, b"")
    return len(written)


def _global_steps(trace: Trace, *, as_recorded: bool) -> dict[Key, int]:
    """Number of each step: the same for all ranks, in the order of the first one."""
    keys = dict.fromkeys(_keys(trace.table("steps", columns=["step", "mode", "mode_step"])))
    return {key: key[0] if as_recorded else number for number, key in enumerate(keys)}


Tensors = list[tuple[str, NDArray[Any], float]]
Shapes = dict[str, list[int]]


def _events(trace: Trace, rank: int, *, as_recorded: bool) -> Iterator[tuple[Key, tuple[Tensors, Shapes]]]:
    """What is to be written of each step: (name, value, seconds since the epoch) of tensors, and shapes."""
    dtypes = {name: info.dtype for name, info in trace.tensors().items()}
    steps = trace.table("steps", columns=["step"], ranks=[rank])["step"].unique().to_pylist()
    for at in range(0, len(steps), _STEPS_AT_A_TIME):
        chunk = (steps[at], steps[at + _STEPS_AT_A_TIME] if at + _STEPS_AT_A_TIME < len(steps) else None)
        content = _Content(trace, rank, chunk)
        for key, time_ns in content.times.items():
            tensors: dict[str, NDArray[Any]] = dict(content.values.get(key, {}))
            shapes: Shapes = {}
            for name, number in content.scalars.get(key, {}).items():
                tensors.setdefault(name, np.array(number if _CAPTURED.search(name) else [number]))
            for name, quantity, vector in content.derived.get(key, ()):
                if quantity == SHAPE_QUANTITY:
                    shapes[name] = [int(size) for size in vector]
                elif quantity.startswith(REDUCTION_QUANTITY):
                    dtype = reduction_dtype(dtypes.get(name, ""))
                    reduction = quantity.removeprefix(REDUCTION_QUANTITY)
                    tensors[_reduction(name, reduction)] = np.array(vector[0], dtype)
            if not as_recorded:
                for name, row in content.stats.get(key, {}).items():
                    if name not in tensors:
                        tensors.update(_reductions(name, row))
            yield key, ([(name, value, time_ns / 1e9) for name, value in tensors.items()], shapes)


class _Content:
    """Rows of some steps of a rank, by step."""

    def __init__(self, trace: Trace, rank: int, steps: tuple[int, int | None]) -> None:
        def rows(table: str, *columns: str) -> pa.Table:
            read = ["step", "mode", "mode_step", *columns]
            return trace.table(table, columns=read, ranks=[rank], steps=steps)

        times = rows("steps", "time_ns")
        self.times = dict(zip(_keys(times), times["time_ns"].to_pylist(), strict=True))
        self.values: dict[Key, dict[str, NDArray[Any]]] = {}
        for row in rows("values", "name", "dtype", "shape", "data").to_pylist():
            array = np.frombuffer(row["data"], np.dtype(row["dtype"])).reshape(row["shape"])
            self.values.setdefault(_key(row), {})[row["name"]] = array
        self.scalars: dict[Key, dict[str, float]] = {}
        for row in rows("scalars", "name", "value").to_pylist():
            self.scalars.setdefault(_key(row), {})[row["name"]] = row["value"]
        self.derived: dict[Key, list[tuple[str, str, list[float]]]] = {}
        for row in rows("derived", "name", "quantity", "value").to_pylist():
            self.derived.setdefault(_key(row), []).append((row["name"], row["quantity"], row["value"]))
        self.stats: dict[Key, dict[str, dict[str, float]]] = {}
        for row in rows("stats", "name", "n_nan", "n_inf", "numel", *_REDUCTIONS).to_pylist():
            self.stats.setdefault(_key(row), {})[row["name"]] = row


def _reductions(name: str, row: Mapping[str, float]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    if row["n_nan"]:
        yield from ((_reduction(name, reduction), np.array(np.nan)) for reduction in _REDUCTIONS)
    elif not row["n_inf"]:
        yield from ((_reduction(name, reduction), np.array(row[reduction])) for reduction in _REDUCTIONS)
        if row["numel"]:
            yield _reduction(name, "sum"), np.array(row["mean"] * row["numel"])
            yield _reduction(name, "variance"), np.array(row["std"] ** 2)
            yield _reduction(name, "abs_mean"), np.array(row["l1"] / row["numel"])


def _reduction(name: str, reduction: str) -> str:
    return reduction_name(name, reduction.removeprefix("abs_"), reduction.startswith("abs_"))


def _write_step(folder: Path, number: int, worker: str, key: Key, tensors: Tensors, shapes: Shapes) -> None:
    _, mode, mode_step = key
    name = f"{number:012d}_{_file_name(worker)}"
    events = f"events/{number:012d}/{name}.tfevents"
    payload, places, offset = [], [], 0
    for tensor, value, seconds in tensors:
        if value.size == 0:
            continue  # smdebug never writes these
        record = encode(Event(tensor, value, number, seconds), mode, mode_step)
        payload.append(record)
        places.append({"tensorname": tensor, "start_idx": offset, "length": len(record)})
        offset += len(record)
    meta: dict[str, Any] = {"mode": mode, "mode_step": mode_step}
    if payload:
        _write(folder / events, b"".join(payload))
        meta["event_file_name"] = events
    shaped = [{"tensorname": tensor, "originalname": tensor, "shape": shape} for tensor, shape in shapes.items()]
    index = {"meta": meta, "tensor_payload": places, "shape_payload": shaped}
    _write(folder / f"index/{number // 1000:09d}/{name}.json", json.dumps(index).encode())


def _collections(trace: Trace) -> dict[str, Any]:
    members: dict[str, list[str]] = {"default": [], "all": []}
    for name, info in trace.tensors().items():
        for collection in info.collections:
            members.setdefault(collection, []).append(name)
    return {
        name: {
            "name": name,
            "include_regex": [],
            "tensor_names": sorted(tensors),
            "reduction_config": None,
            "save_config": None,
            "save_histogram": True,
        }
        for name, tensors in members.items()
    }


def _file_name(worker: str) -> str:
    return worker.replace("/", "_").replace(":", "-")


def _keys(rows: pa.Table) -> list[Key]:
    return list(zip(*(rows[name].to_pylist() for name in ("step", "mode", "mode_step")), strict=True))


def _key(row: Mapping[str, Any]) -> Key:
    return row["step"], row["mode"], row["mode_step"]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
