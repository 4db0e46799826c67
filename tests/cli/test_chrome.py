"""A run as a trace for Perfetto: what is in it, where it lies in time, and that it can be read."""

from __future__ import annotations

import gzip
import json
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from stepwatch.probe.store.reader import Trace
from tests.command import stepwatch
from tests.profiler.jobs import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("chrome") / "run"
    train(run, steps=20, sample=0.002, work=0.005, checkpoint=0.001)
    return run


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    return stepwatch("export", *arguments, "--format", "chrome")


@pytest.fixture(scope="module")
def events(run: Path) -> list[dict[str, Any]]:
    done = export(run, run.parent / "trace.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((run.parent / "trace.json").read_text())
    found: list[dict[str, Any]] = content["traceEvents"]
    assert f"{len(found)} events" in done.stdout
    return found


def test_steps_follow_each_other_and_hold_their_phases(run: Path, events: list[dict[str, Any]]) -> None:
    steps = [event for event in events if event.get("cat") == "step"]
    assert [event["name"] for event in steps] == [f"step {number}" for number in range(20)]
    assert steps[0]["args"]["samples"] == 4
    recorded = Trace(run).table("steps").to_pandas()
    assert [event["dur"] for event in steps] == pytest.approx((recorded["duration_ns"] / 1e3).tolist())
    for one, other in pairwise(steps):
        assert one["ts"] + one["dur"] <= other["ts"] + 1000, "times are of two clocks, which agree to a millisecond"
    phases = [event for event in events if event.get("cat") == "phase"]
    assert {event["name"] for event in phases} == {"data", "loader", "checkpoint", "forward", "backward", "optimizer"}
    for phase in phases:
        assert any(s["ts"] - 1 <= phase["ts"] and phase["ts"] + phase["dur"] <= s["ts"] + s["dur"] + 1 for s in steps)


def test_the_machine_is_counters_and_every_process_has_a_name(events: list[dict[str, Any]]) -> None:
    counters = {event["name"] for event in events if event["ph"] == "C"}
    assert {"node cpu_percent", "process memory_rss_bytes"} <= counters
    named = {event["pid"] for event in events if event["name"] == "process_name"}
    assert {event["pid"] for event in events} == named


def test_findings_are_marks_at_their_step(tmp_path: Path) -> None:
    from stepwatch.cli.chrome import export_chrome
    from stepwatch.rules.catalogue import configure
    from stepwatch.rules.replay import analyze

    train(tmp_path / "run", steps=60, sample=0.005)
    trace = Trace(tmp_path / "run")
    settings = ["DataLoadingBound.seconds=0.2", "DataLoadingBound.steps=10"]
    (finding,) = analyze(trace, configure(["DataLoadingBound"], settings)).findings
    export_chrome(trace, tmp_path / "trace.json", [finding])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    (mark,) = [event for event in events if event["ph"] == "i"]
    (step,) = [event for event in events if event["name"] == f"step {finding.last_step}"]
    assert mark["name"] == "DataLoadingBound"
    assert mark["ts"] == pytest.approx(step["ts"] + step["dur"])


def test_a_rank_alone_compressed_and_a_rank_that_is_not_there(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "trace.json.gz", "--rank", 0)
    assert done.returncode == 0, done.stderr
    with gzip.open(tmp_path / "trace.json.gz", "rt") as file:
        assert json.load(file)["traceEvents"]
    done = export(run, tmp_path / "none.json", "--rank", 7)
    assert done.returncode == 2
    assert done.stderr.strip() == f"stepwatch: {run}: rank 7 has recorded nothing; there are [0]"
