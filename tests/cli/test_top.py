"""``stepwatch top``: the screen of a live run, and of one that is over."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from tests.profiler.jobs import train

ROOT = Path(__file__).parents[2]
TOP = [sys.executable, "-m", "stepwatch.cli", "top"]


def screen(run: Path, *options: str) -> str:
    environment = {**os.environ, "COLUMNS": "160"}
    done = subprocess.run([*TOP, str(run), *options], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pace_phases_loss_and_machine_are_shown(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=40, sample=0.01)
    text = screen(tmp_path / "run")
    assert "finished after 40 steps" in text
    assert "samples/s" in text
    assert "loss_output_0" in text
    waiting = re.search(r"loader (\d+)", text)
    assert waiting is not None and int(waiting[1]) > 60, "most of the step is spent waiting"
    for part in ("CPU", "memory", "resident", "none recorded"):
        assert part in text


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """Two ranks and a GPU; the second rank waits for its data."""
    now = time.time_ns()
    for rank, loader in ((0, 1), (1, 30)):
        writer = TraceWriter(tmp_path / "run", rank=rank, run_info={"world_size": 2})
        for step in range(20):
            timing = {"duration_ns": 50_000_000, "data_ns": 31_000_000, "loader_ns": loader * 10**6, "samples": 8}
            timing |= {"forward_ns": 5_000_000, "backward_ns": 10_000_000}
            writer.submit(StepRecord(step, "TRAIN", step, now + step * 50_000_000, timing=timing))
        if rank == 0:
            rows = {"utilization_percent": 37.0, "memory_used_bytes": 2.0**34, "memory_total_bytes": 2.0**36}
            rows |= {"power_watts": 321.0, "temperature_celsius": 66.0, "throttled_thermal": 1.0}
            writer.submit_system([(now, "GPU-abcdef01-2345", metric, value) for metric, value in rows.items()])
        writer.close("finished")
    return tmp_path / "run"


def test_ranks_and_gpus_have_a_line_each(cluster: Path) -> None:
    text = screen(cluster)
    assert "20 steps/s, 320 samples/s" in text
    lines = {line.split("█")[0].strip(): line for line in text.splitlines()}
    assert "data 60 %" in lines["rank 0"]
    assert "loader 60 %" in lines["rank 1"]
    (gpu,) = [line for line in text.splitlines() if "GPU-abcdef01" in line]
    assert "37 %" in gpu and "16 GiB of 64 GiB, 321 W, 66 °C, hot" in gpu


def test_a_run_that_has_just_begun_is_no_error(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "run").close("finished")
    assert "no step has ended yet" in screen(tmp_path / "run")


def test_it_follows_a_live_run_to_its_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = subprocess.Popen([sys.executable, "-m", "tests.profiler.jobs", str(run), "steps=300", "work=0.03"], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (run / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    top = subprocess.Popen(
        [*TOP, str(run), "--interval", "0.3"], stdout=theirs, stderr=subprocess.PIPE, env=environment
    )
    os.close(theirs)
    shown = b""
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
        elif top.poll() is not None:
            break
    assert top.wait(10) == 0
    job.wait(10)
    text = shown.decode(errors="replace")
    assert text.count("steps/s") >= 2, "it was drawn again"
    assert "live" in text and "finished after 300 steps" in text
