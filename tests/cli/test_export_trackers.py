"""Runs for W&B, MLflow and Arrow readers, read back by the clients themselves; offline runs of W&B as logs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from stepwatch.probe.store.labels import change_labels
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.scalar_logs import read_log
from stepwatch.rules.testing import SyntheticRun
from tests.command import stepwatch

STEPS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = SyntheticRun().loss([1 / (1 + step) for step in range(30)] + [math.nan] * 10)
    made.weights({"fc[1].weight": 0.1}).evaluations(10, [0.9, 0.5, 0.4, 0.3], name="val_loss")
    path = made.write(tmp_path_factory.mktemp("runs") / "run")
    change_labels(path, add=["good", "team=vision"], note="the one")
    return path


@pytest.fixture(scope="module")
def offline(run: Path) -> Path:
    """The folder of an offline run of W&B, by a process of its own: the client writes the last of it as that ends."""
    command = [sys.executable, "-m", "stepwatch.cli", "export", run, run.parent / "out", "--format", "wandb"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (folder,) = (run.parent / "out" / "wandb").glob("offline-run-*")
    return folder


def test_an_offline_run_of_wandb_comes_back_as_a_log(run: Path, offline: Path, tmp_path: Path) -> None:
    folder = offline
    points = {(record.step, name): value for record in read_log(folder) for name, value in record.scalars}
    rows = Trace(run).table("scalars").to_pylist()
    assert len(rows) > STEPS
    for row in rows:
        name = f"eval/{row['name']}" if row["mode"] == "EVAL" else row["name"]
        assert points[row["step"], name] == pytest.approx(row["value"], nan_ok=True)
    assert points[5, "rms/fc[1].weight"] == pytest.approx(0.1, rel=0.1)

    judged = stepwatch("analyze", "--scalars", folder, "--rules", "DivergingLoss", "--json")
    (rule,) = json.loads(judged.stdout)["rules"]
    assert judged.returncode == 1 and rule["findings"][0]["first_step"] == 30
    assert stepwatch("import", folder, tmp_path / "again").returncode == 0
    assert Trace(tmp_path / "again").table("scalars").num_rows >= len(rows)
    again = stepwatch("export", run, run.parent / "out", "--format", "wandb")
    assert again.returncode == 2 and "holds something already" in again.stderr


def test_a_log_that_is_cut_off_is_read_to_there_and_another_file_refused(offline: Path, tmp_path: Path) -> None:
    (whole,) = offline.glob("*.wandb")
    log = tmp_path / "cut.wandb"
    log.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert 0 < len(read_log(log)) < len(read_log(whole))
    (tmp_path / "other.wandb").write_bytes(b"not such a log at all")
    refused = stepwatch("analyze", "--scalars", tmp_path / "other.wandb")
    assert refused.returncode == 2 and "not the log of an offline run" in refused.stderr


def test_mlflow_finds_curves_tags_and_status(run: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    done = stepwatch("export", run, tmp_path / "store", "--format", "mlflow")
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = mlflow.MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
        experiment = client.get_experiment_by_name("stepwatch")
        (found,) = client.search_runs([experiment.experiment_id])
        losses = client.get_metric_history(found.info.run_id, "CrossEntropyLoss_output_0")
        weights = client.get_metric_history(found.info.run_id, "rms/fc_1_.weight")
    assert found.info.status == "FINISHED" and found.data.tags["team"] == "vision"
    assert found.data.tags["mlflow.note.content"] == "the one"
    assert [point.step for point in losses] == list(range(STEPS)) and math.isnan(losses[-1].value)
    assert weights[0].value == pytest.approx(0.1, rel=0.1)
    several = stepwatch("export", run, tmp_path / "two", "--format", "mlflow", "--rank", 0, "--rank", 1)
    assert several.returncode == 2 and "expected one" in several.stderr and not (tmp_path / "two").exists()


def test_arrow_files_have_the_tables_and_their_types(run: Path, tmp_path: Path) -> None:
    assert stepwatch("export", run, tmp_path / "out", "--format", "arrow").returncode == 0
    with pa.memory_map(str(tmp_path / "out" / "stats.arrow")) as file:
        read = pa.ipc.open_file(file).read_all()
    expected = Trace(run).table("stats")
    assert read.select(expected.column_names).equals(expected)
    names = {"scalars", "stats", "steps", "system", "findings"}
    assert {path.stem for path in (tmp_path / "out").iterdir()} == names
