"""Runs in the formats of other tools, read back by these tools."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stepwatch.probe.store.findings import FindingLog
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.scalar_logs import read_log
from tests.command import stepwatch

STEPS = 1500


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two attempts, the second of which replaced the last steps of the first; two ranks."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    rng = np.random.default_rng(0)
    for rank, start, end in ((0, 0, 1000), (0, 900, STEPS), (1, 0, 10)):
        writer = TraceWriter(folder, rank=rank)
        writer.set_start_step(start)
        writer.describe(TensorInfo("Net_fc.weight", (8, 8), "float32", ("weights",)))
        for step in range(start, end):
            stats = np.abs(rng.normal(size=(1, len(STAT_COLUMNS))))
            stats[:, :4] = 64, 0, 0, 0
            scalars = [("loss", start + 1.0 / (1 + step)), ('a "quoted", name', float("nan"))]
            names = ("Net_fc.weight",)
            assert writer.submit(
                StepRecord(step, "TRAIN", step, step * 10**9, names, stats, scalars=scalars, saved=True)
            )
            if step % 100 == 99:
                writer.submit(StepRecord(step + 1, "EVAL", step, step * 10**9, scalars=[("loss", 5.0 + step)]))
        if rank == 0:
            writer.submit_system([(1, "node", "cpu_percent", 50.0)])
        writer.close("finished", last_step=end)
    FindingLog(folder, "hook").append([{"finding_id": "1", "rule": "R", "last_step": 3, "message": "a, b\nc"}])
    return folder


def export(run: Path, destination: Path, form: str, *more: str) -> subprocess.CompletedProcess[str]:
    return stepwatch("export", run, destination, "--format", form, *more)


def test_csv_has_every_row_that_counts(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "csv", "csv")
    assert done.returncode == 0, done.stderr
    for table in ("scalars", "stats", "steps"):
        read = pd.read_csv(tmp_path / "csv" / f"{table}.csv")
        expected = Trace(run).table(table).to_pandas()
        columns = [column for column in expected.columns if column != "rank"]
        pd.testing.assert_frame_equal(read[columns], expected[columns], check_dtype=False)
        assert read["rank"].tolist() == expected["rank"].tolist()
    with (tmp_path / "csv" / "findings.csv").open(newline="") as file:
        (finding,) = csv.DictReader(file)
    assert finding["rule"] == "R" and finding["message"] == "a, b\nc"
    assert pd.read_csv(tmp_path / "csv" / "system.csv")["metric"].tolist() == ["cpu_percent"] * 2


def test_event_files_hold_the_same_curves(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    done = export(run, tmp_path / "events", "tensorboard")
    assert done.returncode == 0, done.stderr
    read: dict[str, dict[int, float]] = {}
    for record in read_log(tmp_path / "events"):
        for name, value in record.scalars:
            read.setdefault(name, {})[record.step] = value
    assert {"train/loss", "eval/loss", "train/rms/Net_fc.weight", "train/abs_max/Net_fc.weight"} <= set(read)
    rows = Trace(run).table("scalars", ranks=[0], modes=["TRAIN"], names=["loss"]).to_pandas()
    assert read["train/loss"] == pytest.approx(dict(zip(rows["step"], rows["value"], strict=True)))
    kept = read["train/rms/Net_fc.weight"]
    assert len(kept) == 1000 and min(kept) == 0 and max(kept) == STEPS - 1


def test_ranks_are_chosen(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "csv", "csv", "--rank", "1").returncode == 0
    assert set(pd.read_csv(tmp_path / "csv" / "steps.csv")["rank"]) == {1}
    assert export(run, tmp_path / "events", "tensorboard", "--rank", "0", "--rank", "1").returncode == 0
    assert {path.name for path in (tmp_path / "events").iterdir()} >= {"rank-0-train", "rank-1-train"}


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for form in ("csv", "tensorboard"):
        done = export(run, tmp_path, form)
        assert done.returncode == 2 and "holds something already" in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
