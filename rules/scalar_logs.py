"""Logs of scalars that other tools wrote, as records that rules judge and traces hold."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.engine import Engine
from stepwatch.rules.replay import Analysis
from stepwatch.rules.step import StepBuilder

_SEPARATORS = (",", ";", "\t")
_STEP_COLUMNS = ("step", "global_step", "_step", "trainer/global_step", "iteration", "iter", "batch", "epoch")
_NAME_COLUMNS = ("name", "tag", "metric", "key")
_MODE_COLUMNS = ("mode", "split", "phase")
_TIME_COLUMNS = ("wall time", "wall_time", "_timestamp", "timestamp", "time", "_runtime")
_EVALUATION = re.compile(r"^(?:val|valid|validation|eval|evaluation|dev|test)$", re.IGNORECASE)


@dataclass(frozen=True)
class Point:
    """A value of a scalar at a step."""

    step: int
    mode: str
    name: str
    value: float


def read_log(path: str | os.PathLike[str]) -> list[StepRecord]:
    """Records of a log, one per step and mode, by step; where a scalar has several values at a step the last counts.

    Args:
        path: a CSV file with a header or a JSONL file, wide (a column per scalar) or long (columns for the step, the
            name and the value); the ``trainer_state.json`` of a Hugging Face Trainer; a TensorBoard event file or a
            directory of them; an offline run of W&B.

    Raises:
        TraceError: a file that cannot be read as such a log, or holds no scalars.
        ImportError: an event file without the package tensorboard, a run of W&B without its client.
    """
    from stepwatch.rules.wandb_logs import offline_run, read_offline_run

    path = Path(path)
    if not path.exists():
        raise TraceError(f"{path}: no such file")
    if (offline := offline_run(path)) is not None:
        points = read_offline_run(offline)
    elif path.is_dir() or ".tfevents." in path.name:
        from stepwatch.rules.tensorboard_logs import read_events

        points = read_events(path)
    else:
        points = list(_points(path))
    if not points:
        raise TraceError(f"{path}: holds no scalars")
    return _records(points)


def judge_log(records: Sequence[StepRecord], specs: Sequence[RuleSpec]) -> Analysis:
    """Judge a log as a run that is over."""
    engine, builder = Engine(specs), StepBuilder(0, TensorInfo)
    for record in records:
        engine.feed(builder.from_record(record))
    engine.conclude(0)
    return Analysis(engine.results(live=False), engine.findings(), live=False)


def import_log(log: str | os.PathLike[str], run: str | os.PathLike[str]) -> int:
    """Write a log as a trace; returns how many steps that has.

    Raises:
        TraceError: a log that cannot be read, or a directory that holds something or cannot be written.
    """
    folder = Path(run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TraceError(f"{folder}: holds something already; expected a new directory")
    records = read_log(log)
    writer = TraceWriter(run, run_info={"command": [], "config": {"imported": os.fspath(log)}})
    for record in records:
        while not writer.submit(record):
            time.sleep(0.01)  # the queue is full
    writer.close("finished", last_step=records[-1].step)
    return len(records)


def _records(points: Iterable[Point]) -> list[StepRecord]:
    found: dict[tuple[int, bool], dict[str, float]] = {}
    for point in points:
        found.setdefault((point.step, point.mode == "TRAIN"), {})[point.name] = point.value
    counts = {True: 0, False: 0}
    records = []
    # An evaluation at a step comes before the training step of that number, as in a trace.
    for (step, training), scalars in sorted(found.items()):
        mode = "TRAIN" if training else "EVAL"
        records.append(StepRecord(step, mode, counts[training], time_ns=0, scalars=list(scalars.items())))
        counts[training] += 1
    return records


def _points(path: Path) -> Iterator[Point]:
    """Points of a text file."""
    rows = _json_rows(path) if path.suffix.lower() in (".json", ".jsonl", ".ndjson") else _csv_rows(path)
    for line, row in rows:
        where = f"{path}, line {line}"
        step = _take(row, _STEP_COLUMNS)
        if step is None:
            raise TraceError(f"{where}: has no step; expected one of {', '.join(_STEP_COLUMNS)}, got {', '.join(row)}")
        number = _number(step)
        if number is None or not math.isfinite(number) or number != int(number):
            raise TraceError(f"{where}: the step is {step!r}; expected a whole number")
        mode = "EVAL" if _EVALUATION.match(str(_take(row, _MODE_COLUMNS) or "")) else "TRAIN"
        name, value = _long(row, path)
        values = row if name is None else {name: value}
        for key, cell in values.items():
            if key.lower() not in (*_STEP_COLUMNS, *_TIME_COLUMNS) and (read := _number(cell)) is not None:
                yield Point(int(number), mode, key, read)


def _take(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    """The value of the first of these columns that the row has."""
    lower = {key.lower(): key for key in row}
    return next((row[lower[column]] for column in columns if column in lower and row[lower[column]] != ""), None)


def _long(row: Mapping[str, Any], path: Path) -> tuple[str | None, Any]:
    """Name and value of a row in long form; TensorBoard's own CSV files hold one scalar, named by the file."""
    value = _take(row, ("value",))
    if value is None:
        return None, None
    name = _take(row, _NAME_COLUMNS)
    if name is None and len(row) <= len(("wall time", "step", "value")):
        name = path.stem
    return (str(name), value) if name is not None else (None, None)


def _number(cell: Any) -> float | None:
    """The number in a cell; None for text, truth values and empty ones."""
    if isinstance(cell, bool) or cell is None:
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            separator = max(_SEPARATORS, key=header.count)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
            for row in reader:
                # A row that is still being written may lack cells.
                there = {key.strip(): cell for key, cell in row.items() if key and cell is not None}
                yield reader.line_num, _spelled(_without_ranges(there), decimal_comma=separator == ";")
    except (csv.Error, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: not a CSV file: {error}") from None


def _without_ranges(row: dict[str, str]) -> dict[str, str]:
    """Without the lowest and highest values that a table exported from W&B has beside each scalar."""
    return {key: cell for key, cell in row.items() if not (key[-5:] in ("__MIN", "__MAX") and key[:-5] in row)}


def _spelled(row: dict[str, str], *, decimal_comma: bool) -> dict[str, str]:
    """Numbers with a point where the language of the spreadsheet has a comma."""
    return {key: cell.replace(",", ".") for key, cell in row.items()} if decimal_comma else row


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not a JSON file: {error}") from None
    whole = _parsed(text)
    if isinstance(whole, dict) and isinstance(whole.get("log_history"), list):
        whole = whole["log_history"]
    if isinstance(whole, list):
        rows = list(enumerate(whole, 1))
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [(number, _parsed(line)) for number, line in lines]
        if rows and rows[-1][1] is None and not text.endswith("\n"):
            rows.pop()  # still being written
    for number, row in rows:
        if not isinstance(row, dict):
            raise TraceError(f"{path}, line {number}: not a JSON object")
        yield number, dict(_flatten(row))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _flatten(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
