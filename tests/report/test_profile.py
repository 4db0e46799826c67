"""The report's parts about time and machine, and the same numbers as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from stepwatch.cli.outliers import outliers
from stepwatch.cli.profile import loading, profile
from stepwatch.cli.report.page import write_report
from stepwatch.cli.report.profile import machine_parts
from stepwatch.cli.step_times import step_times
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import configure
from tests.command import stepwatch
from tests.profiler.jobs import train

MS = 1_000_000
GPU = "GPU-0f3ae210-1111"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    run = tmp_path_factory.mktemp("two") / "run"
    start = 10**18
    for rank, wait in ((0, 10), (1, 40)):
        writer = TraceWriter(run, rank=rank, run_info={"world_size": 2, "start_ns": start - 20 * 10**9})
        now = start
        for step in range(100):
            checkpoint = 300 if step == 50 else 0
            timing = {"data_ns": (wait + 5 + checkpoint) * MS, "loader_ns": wait * MS, "forward_ns": 20 * MS}
            timing |= {"backward_ns": (75 - wait) * MS, "duration_ns": (100 + checkpoint) * MS, "samples": 32}
            timing |= {"loader_workers": 2} | ({"checkpoint_ns": checkpoint * MS} if checkpoint else {})
            writer.submit(StepRecord(step, "TRAIN", step, now + timing["data_ns"], timing=timing))
            now += timing["duration_ns"]
        if rank == 0:
            rows = []
            for number in range(20):
                at = start + number * 500 * MS
                rows += [(at, "node", "cpu_percent", 10.0 + number), (at, "core:0", "cpu_percent", 99.0)]
                rows += [(at, GPU, "utilization_percent", 50.0), (at, GPU, "memory_used_bytes", 2.0**33)]
            writer.submit_system(rows)
        writer.close("finished", last_step=100)
    return Trace(run)


def test_phases_add_up_to_the_step(two_ranks: Trace) -> None:
    numbers = profile(two_ranks)
    assert numbers["shares"]["0"]["loader"] == pytest.approx(1000 / 10300)
    assert numbers["shares"]["1"]["loader"] == pytest.approx(4000 / 10300)
    assert numbers["shares"]["0"]["checkpoint"] == pytest.approx(300 / 10300)
    assert sum(numbers["shares"]["0"].values()) == pytest.approx(1)
    assert numbers["ranks"]["0"]["duration"]["p50_ms"] == pytest.approx(100)
    assert numbers["seconds"]["before_first_step"] == pytest.approx(20, abs=0.01)
    assert numbers["seconds"]["training"] == pytest.approx(10.3)
    (devices,) = numbers["devices"].values()
    assert devices["node cpu_percent"] | {"p99": 0, "p95": 0} == {
        "unit": "%", "max": 29.0, "p99": 0, "p95": 0, "p50": 19.5, "min": 10.0
    }  # fmt: skip
    json.dumps(numbers, allow_nan=False)


def test_a_slow_step_is_told_with_its_phase(two_ranks: Trace) -> None:
    (slow,) = outliers(two_ranks, {0: step_times(two_ranks, 0)})
    assert (slow["step"], slow["phase"], round(slow["excess_ms"])) == (50, "checkpoint", 300)


def test_the_loader_is_told_with_the_workers_that_would_do(two_ranks: Trace) -> None:
    busy = loading(step_times(two_ranks, 1))
    assert busy is not None and busy["workers"] == 2
    assert busy["workers_needed"] == 4  # a batch takes a worker 0.2 s, the training 0.06 s a step
    assert busy["wait_share"] == pytest.approx(0.4, abs=0.02)


def test_the_page_shows_time_and_machine(two_ranks: Trace, tmp_path: Path) -> None:
    page = write_report(two_ranks, tmp_path / "r.html", configure(["profiler"])).read_text()
    text = re.sub(r"<script.*?</script>|<[^>]+>", " ", page, flags=re.DOTALL)
    for heading in ("Phases over steps", "The job", "Ranks", "Slowest steps", "Data loader", "Every core and GPU"):
        assert heading in text
    words = " ".join(text.split())
    assert "rank 1 100 100 39 %" in words
    assert "50 400 checkpoint +300" in words
    assert f"{GPU} memory_used_bytes 8 GiB" in words


def test_show_gives_the_numbers_as_json(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=20, sample=0.005)
    numbers = json.loads(stepwatch("show", tmp_path / "run", "--json").stdout)["profile"]
    assert numbers["shares"]["0"]["loader"] > 0.5
    assert numbers["loading"]["workers_needed"] > 1
    assert any("process memory_rss_bytes" in metrics for metrics in numbers["devices"].values())


def test_a_run_without_steps_or_samples_has_neither_part(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "run").close("finished")
    page = write_report(Trace(tmp_path / "run"), tmp_path / "r.html", configure(["profiler"])).read_text()
    assert "Phases over steps" not in page and "Use in numbers" not in page


def test_many_gpus_are_one_line_of_the_legend_and_a_long_run_is_told_in_hours(two_ranks: Trace) -> None:
    times = two_ranks.info.start_ns + np.arange(0, 30_000, 100) * 10**9
    series = {("a", f"GPU-{n}", "utilization_percent"): (times, np.full(300, 90.0 + n)) for n in range(8)}
    use, heat = (part.chart for part in machine_parts(two_ranks, series, []) if part.chart is not None)
    (legend,) = use.legend
    assert [(item.label.value, len(item.renderers)) for item in legend.items] == [("8 GPUs utilization", 8)]
    assert use.xaxis.axis_label == "hours since the start"
    assert max(use.renderers[0].data_source.data["x"]) == pytest.approx(29_900 / 3600)
    mapper = heat.renderers[0].glyph.fill_color.transform
    assert (mapper.low, mapper.high) == (0, 100), "use between 90 and 97 % does not look as if some were idle"
