"""What is written is what is read, however it was flushed, joined and resumed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwatch.probe.store.compaction import FAN_IN, PartStore
from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.layout import list_parts, rank_folder
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS, TABLES
from stepwatch.probe.store.writer import TraceWriter

from .conftest import NAMES, record

_NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=64)
_NAMES = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12)
_SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def records(draw: st.DrawFn) -> StepRecord:
    names = tuple(draw(st.lists(_NAMES, max_size=3, unique=True)))
    rows = [[float(draw(st.integers(0, 2**40))) for _ in range(4)] + [draw(_NUMBERS) for _ in range(7)] for _ in names]
    vectors = draw(st.lists(st.tuples(_NAMES, _NAMES, st.lists(_NUMBERS, max_size=4).map(np.array)), max_size=2))
    return StepRecord(
        step=draw(st.integers(0, 2**50)),
        mode=draw(st.sampled_from(["TRAIN", "EVAL", "PREDICT", "GLOBAL"])),
        mode_step=draw(st.integers(0, 2**50)),
        time_ns=draw(st.integers(0, 2**62)),
        names=names,
        stats=np.array(rows, dtype=np.float64).reshape(len(names), len(STAT_COLUMNS)) if names else None,
        scalars=draw(st.lists(st.tuples(_NAMES, _NUMBERS), max_size=3)),
        derived=[(name, quantity, np.asarray(vector, dtype=np.float64)) for name, quantity, vector in vectors],
        values=[("raw", np.arange(draw(st.integers(0, 5)), dtype=np.float32))],
        timing={"duration_ns": draw(st.integers(0, 2**40))},
    )


@given(st.lists(records(), min_size=1, max_size=6), st.integers(1, 3))
@_SLOW
def test_records_come_back_as_they_were(content: list[StepRecord], flush_every: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = TraceWriter(Path(folder) / "run")
        for number, one in enumerate(content):
            assert writer.submit(one)
            if number % flush_every == 0:
                writer.flush()
        writer.close("finished")
        trace = Trace(Path(folder) / "run")
        assert trace.counters == {}
        stats = trace.table("stats")
        assert stats["name"].to_pylist() == [name for one in content for name in one.names]
        expected = [one.stats for one in content if one.stats is not None]
        if expected:
            found = np.column_stack([stats[column].to_numpy().astype(np.float64) for column in STAT_COLUMNS])
            np.testing.assert_array_equal(found, np.concatenate(expected))
        steps = trace.table("steps")
        for column in ("step", "mode", "mode_step", "time_ns"):
            assert steps[column].to_pylist() == [getattr(one, column) for one in content]
        scalars = trace.table("scalars")
        assert scalars["name"].to_pylist() == [name for one in content for name, _ in one.scalars]
        np.testing.assert_array_equal(
            scalars["value"].to_numpy(), [value for one in content for _, value in one.scalars]
        )
        derived = trace.table("derived")
        for row, (name, quantity, vector) in zip(
            derived.to_pylist(), [triple for one in content for triple in one.derived], strict=True
        ):
            assert (row["name"], row["quantity"]) == (name, quantity)
            np.testing.assert_array_equal(np.array(row["value"], dtype=np.float64), vector)
        values = trace.table("values").to_pylist()
        for row, one in zip(values, content, strict=True):
            restored = np.frombuffer(row["data"], dtype=row["dtype"]).reshape(row["shape"])
            np.testing.assert_array_equal(restored, one.values[0][1])


@given(st.lists(st.sampled_from(["flush", "read", "read some"]), min_size=1, max_size=60))
@_SLOW
def test_a_cursor_gives_each_row_once_however_files_are_joined(moves: list[str]) -> None:
    """Follows a growing table across compactions, against a plain count."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        writer = TraceWriter(run)
        writer.close("finished")
        store = PartStore({"scalars": rank_folder(run, "scalars", 0)}, attempt=0)
        cursor = TableCursor(Trace(run), "scalars", 0, ["step", "mode", "value"])
        written, seen = 0, []
        for move in moves:
            if move == "flush":
                rows = pa.table(
                    {
                        **{name: pa.nulls(3, TABLES["scalars"].field(name).type) for name in TABLES["scalars"].names},
                        "step": pa.array(range(written, written + 3)),
                        "mode": pa.array(["TRAIN"] * 3),
                        "value": pa.array(np.arange(written, written + 3, dtype=np.float64)),
                    }
                ).select(TABLES["scalars"].names)
                written += 3
                store.prepare({"scalars": rows})
                store.write()
            else:
                for piece in cursor.read():
                    seen += piece["value"].to_pylist()
                    if move == "read some":
                        break
        store.compact_all()
        for piece in cursor.read():
            seen += piece["value"].to_pylist()
        assert seen == list(range(written))


def test_a_long_run_ends_with_one_file_per_table(write) -> None:
    run = write(range(FAN_IN * 2 + 5), every=1)
    assert len(list_parts(rank_folder(run, "stats", 0))) == 1
    assert Trace(run).table("steps")["step"].to_pylist() == list(range(FAN_IN * 2 + 5))


def test_files_are_joined_while_the_run_goes_on(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run")
    for step in range(3 * FAN_IN + 2):
        writer.submit(record(step))
        writer.flush()
    folder = rank_folder(tmp_path / "run", "stats", 0)
    assert len(list_parts(folder)) == 3 + 2
    assert Trace(tmp_path / "run").table("stats").num_rows == 2 * (3 * FAN_IN + 2)
    writer.close("finished")


def test_any_parquet_reader_reads_the_folder(write) -> None:
    run = write(range(50))
    frame = pd.read_parquet(run / "stats")
    assert list(frame.columns) == [*TABLES["stats"].names, "rank"]
    assert len(frame) == 100
    assert str(frame["l2"].dtype) == "float64" and str(frame["numel"].dtype) == "int64"
    assert frame["rank"].astype(int).unique().tolist() == [0]


def test_a_resumed_attempt_supersedes_what_it_repeats(write) -> None:
    write(range(0, 20), seed=0)
    write(range(12, 18), start=12, seed=1)
    run = write(range(15, 30), start=15, seed=2)
    scalars = Trace(run).table("scalars").to_pandas()
    assert scalars["step"].tolist() == list(range(30))
    seeds = ((scalars["value"] - scalars["step"]) * 100).round().astype(int).tolist()
    assert seeds == [0] * 12 + [1] * 3 + [2] * 15


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 12)), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_superseding_against_a_naive_model(attempts: list[tuple[int, int]]) -> None:
    from stepwatch.probe.store.attempts import Attempts

    model: dict[int, int] = {}
    for number, (start, length) in enumerate(attempts):
        model = {step: by for step, by in model.items() if step < start}
        model.update({step: number for step in range(start, start + length)})
    found = Attempts([{"start_step": start} for start, _ in attempts])
    read: dict[int, int] = {}
    for number, (start, length) in enumerate(attempts):
        rows = pa.table({"step": pa.array(range(start, start + length), pa.int64()), "mode": ["TRAIN"] * length})
        for step in found.drop_superseded(rows, number)["step"].to_pylist():
            assert step not in read
            read[step] = number
    assert read == model


def test_evaluations_at_the_step_of_the_checkpoint_stay(tmp_path: Path) -> None:
    for start, steps in ((0, range(5)), (3, range(3, 6))):
        writer = TraceWriter(tmp_path / "run")
        writer.set_start_step(start)
        for step in steps:
            if start == 0:
                writer.submit(record(step, mode="EVAL", names=()))
            writer.submit(record(step))
        writer.close("finished")
    steps_read = Trace(tmp_path / "run").table("steps").to_pandas()
    assert steps_read[steps_read["mode"] == "EVAL"]["step"].tolist() == [0, 1, 2, 3]
    assert steps_read[steps_read["mode"] == "TRAIN"]["step"].tolist() == [0, 1, 2, 3, 4, 5]


def test_filters_and_columns(write) -> None:
    trace = Trace(write(range(20)))
    part = trace.table("stats", columns=["step", "l2"], steps=(5, 8), names=[NAMES[0]])
    assert part.column_names == ["step", "l2", "rank"]
    assert part["step"].to_pylist() == [5, 6, 7]
    assert trace.table("stats", modes=["EVAL"]).num_rows == 0
    assert trace.table("stats", ranks=[3]).num_rows == 0


def test_tensors_and_unknown_keys(write) -> None:
    run = write(range(2))
    path = run / "tensors.json"
    content = json.loads(path.read_text())
    content[NAMES[0]]["from_a_newer_version"] = 1
    path.write_text(json.dumps(content))
    assert Trace(run).tensors()[NAMES[0]] == TensorInfo(NAMES[0], (2, 2), "float32", ("weights",))


def test_bytes_on_disk_per_tensor_and_step(tmp_path: Path) -> None:
    """The schema's promise is 60 bytes; statistics of float32 tensors that move like weights in training."""
    writer = TraceWriter(tmp_path / "run")
    names = tuple(f"Net_{i}.weight" for i in range(50))
    generator = np.random.default_rng(0)
    for step in range(400):
        matrix = generator.normal(size=(50, len(STAT_COLUMNS))).astype(np.float32).astype(np.float64)
        matrix[:, :4] = [4096, 0, 0, 0]
        one = record(step)
        one.names, one.stats = names, matrix
        writer.submit(one)
    writer.close("finished")
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "stats").rglob("*.parquet"))
    assert size / (50 * 400) < 60
    metadata = pq.read_metadata(next((tmp_path / "run" / "stats").rglob("*.parquet")))
    assert metadata.num_rows == 50 * 400


def test_a_cursor_over_a_long_run_remembers_no_more_than_there_are_files(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run")
    cursor = TableCursor(Trace(tmp_path / "run"), "steps", 0, ["step", "mode"])
    seen: list[int] = []
    for step in range(300):
        writer.submit(StepRecord(step, "TRAIN", step, 0))
        writer.flush()
        if step % 7 == 0:
            seen += [number for piece in cursor.read() for number in piece["step"].to_pylist()]
    writer.close("finished")
    seen += [number for piece in cursor.read() for number in piece["step"].to_pylist()]
    assert seen == list(range(300))
    assert sum(len(progress.rows_before) for progress in cursor._progress.values()) < 150
