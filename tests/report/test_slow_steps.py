"""The slowest steps with what happened in them, and the map of ranks, of a run of four ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stepwatch.cli.outliers import outliers
from stepwatch.cli.profile import profile
from stepwatch.cli.report.page import write_report
from stepwatch.cli.step_times import step_times
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import configure

MS = 1_000_000
START = 10**18


def write(run: Path, ranks: int = 4, steps: int = 400) -> Trace:
    """Rank 2 works longer from step 250 on; rank 0 evaluates before step 100, and the disk is slow at step 300."""
    random = np.random.default_rng(0)
    for rank in range(ranks):
        writer = TraceWriter(run, rank=rank, run_info={"world_size": ranks, "start_ns": START})
        now = START
        for step in range(steps):
            own = 80 + 4 * random.random() + (40 if rank == 2 and step >= 250 else 0)
            period = 130 if step >= 250 else 92
            loader = 5
            if step == 100:
                period += 2000
                if rank == 0:
                    own += 2000
                    writer.submit(StepRecord(step, "EVAL", 0, now + 100 * MS, timing={"duration_ns": 1800 * MS}))
            if step == 300 and rank == 0:
                loader, own, period = 1500, own + 1500, period + 1500
            elif step == 300:
                period += 1500
            if step == 350:
                period += 600
                own += 600 * (rank == 3)
            waited = period - own
            data = loader + (2000 if step == 100 and rank == 0 else 0)
            timing = {"data_ns": data, "loader_ns": loader, "forward_ns": 20, "backward_ns": period - data - 25}
            timing |= {"optimizer_ns": 5, "duration_ns": period, "collective_ns": waited}
            ns = {name: int(value * MS) for name, value in timing.items()}
            writer.submit(StepRecord(step, "TRAIN", step, now + ns["data_ns"], timing=ns))
            if rank == 0:
                at = now + ns["data_ns"]
                waits = 70.0 if step == 300 else 2.0
                writer.submit_system([(at, "node", "iowait_percent", waits), (at, "node", "cpu_percent", 40.0)])
            now += ns["duration_ns"]
        writer.close("finished", last_step=steps)
    return Trace(run)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return write(tmp_path_factory.mktemp("slow") / "run")


def test_slow_steps_are_told_with_what_happened_in_them(trace: Trace) -> None:
    found = {row["step"]: row for row in outliers(trace, {rank: step_times(trace, rank) for rank in trace.ranks})}
    assert list(found) == [100, 300, 350]
    assert (found[100]["phase"], found[100]["happened"]) == ("data", ["an evaluation ran"])
    assert (found[300]["phase"], found[300]["happened"]) == (
        "loader",
        ["the processors waited for storage 70 % (2 % usually)"],
    )
    assert (found[350]["phase"], found[350]["happened"]) == ("backward", ["it waited for rank 3"])
    assert profile(trace)["outliers"][0]["happened"] == ["an evaluation ran"]


def test_the_page_has_them_and_a_map_of_the_ranks(trace: Trace, tmp_path: Path) -> None:
    page = write_report(trace, tmp_path / "r.html", configure(["profiler"])).read_text()
    assert "it waited for rank 3" in page and "what happened" in page
    assert "Every rank" in page and page.count('"rank 2"') >= 1


def test_one_rank_has_no_map(tmp_path: Path) -> None:
    alone = write(tmp_path / "run", ranks=1, steps=60)
    page = write_report(alone, tmp_path / "r.html", configure(["profiler"])).read_text()
    assert "Every rank" not in page
