"""Curves of a run, in a file, in the terminal and in a notebook."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.trial import create_trial
from tests.command import stepwatch

EXAMPLES = Path(__file__).parents[2] / "examples"
NASTY = "<script>alert(1)</script>$x_"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    writer = TraceWriter(folder)
    writer.describe(TensorInfo("Net_fc.weight", (8, 8), "float32", ("weights",)))
    for step in range(300):
        stats = np.full((1, len(STAT_COLUMNS)), 4.0)
        stats[0, :4] = 64, 0, 0, 0
        stats[0, STAT_COLUMNS.index("l2")] = 8.0 + step
        loss = float("nan") if step >= 250 else 2.0 / (1 + step)
        scalars = [("loss", loss), (NASTY, float(step)), ("stepwatch/save_interval", 1.0)]
        record = StepRecord(step, "TRAIN", step, 0, ("Net_fc.weight",), stats, scalars=scalars, saved=True)
        assert writer.submit(record)
    writer.close("finished", last_step=300)
    return folder


def test_a_file_shows_the_curves(run: Path, tmp_path: Path) -> None:
    done = stepwatch("plot", "loss|weight|script", run, "-o", tmp_path / "plot.svg", "--column", "rms", "--log")
    assert done.returncode == 0, done.stderr
    drawn = (tmp_path / "plot.svg").read_text()
    assert "<script" not in drawn and drawn.count("<!-- ") >= 3
    assert stepwatch("plot", "loss", run, "-o", tmp_path / "plot.png").returncode == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_terminal_shows_them_in_its_width(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    done = stepwatch("plot", "^loss$", run)
    assert done.returncode == 0, done.stderr
    assert "⠤⠤ loss [TRAIN] (50 values left out)" in done.stdout and "\x1b[" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nothing",), "finds no scalar and no tensor"),
        (("(",), "not a regular expression"),
        (("weight", "--column", "size"), "column is 'size'; expected rms or one of numel"),
        (("loss", "-o", "plot.xyz"), "xyz"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(run: Path, arguments: tuple[str, ...], text: str) -> None:
    done = stepwatch("plot", arguments[0], run, *arguments[1:])
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and text in done.stderr


def test_tables_for_pandas_arrow_and_polars(run: Path) -> None:
    trial = create_trial(run, range_steps=(100, 200))
    rows = trial.table("scalars", names=["loss"])
    assert rows.num_rows == 100
    frame = trial.frame("stats")
    assert frame["step"].tolist() == list(range(100, 200)) and frame["name"].dtype == "category"
    assert frame["l2"].iloc[0] == 108.0
    pytest.importorskip("polars")
    assert trial.polars("scalars", names=["loss"])["value"].to_list() == rows["value"].to_pylist()


def test_a_run_shows_itself_and_escapes_every_name(run: Path) -> None:
    shown = create_trial(run)._repr_html_()
    assert "finished, 300 steps, 1 rank, 1 tensors" in shown
    assert "&lt;script&gt;" in shown and "<script" not in shown
    assert shown.count("<svg") == 3 and Trace(run).info.job_name in shown


def test_the_example_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "explore.ipynb", as_version=4)
    client.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert {"text/html", "image/png"} <= kinds
    assert not any(cell.get("outputs") for cell in nbformat.read(EXAMPLES / "explore.ipynb", as_version=4).cells)
