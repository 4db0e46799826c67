"""Processors that others have taken: told as such, and not blamed on the loader or on the pace of the steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.replay import analyze
from tests import forked
from tests.profiler.jobs import train
from tests.profiler.made_up import SECOND, result_of

Sample = tuple[float, str, str, float]
Timing = Callable[[int], dict[str, int]]


def use(node: float, job: float, since: int = 0, until: int = 1000, wait: float = 0.0) -> Iterator[Sample]:
    """Four processors, idle but for these seconds: per cent of all of them in use, and by the job."""
    for second in range(1000):
        taken = since <= second < until
        if second % 5 == 0:
            for core in range(4):
                yield second, f"core:{core}", "cpu_percent", node
        yield second, "node", "cpu_percent", node if taken else 30.0
        yield second, "job", "cpu_percent", 4 * job if taken else 100.0
        for device in ("process", "job"):
            yield second, device, "cpu_wait_percent", wait if taken else 1.0


def phases(**seconds: float) -> dict[str, int]:
    times = {f"{phase}_ns": int(each * SECOND) for phase, each in seconds.items()}
    return {**times, "duration_ns": sum(times.values()) - times.get("loader_ns", 0)}


WAITING = {**phases(data=0.6, loader=0.6, forward=0.1, backward=0.3), "loader_workers": 2}


def test_waiting_for_data_while_others_have_the_processors_is_not_decided(tmp_path: Path) -> None:
    result = result_of(tmp_path / "run", "DataLoadingBound", lambda step: WAITING, use(99, 30, wait=50))
    assert not result.findings and not result.coverage.decided
    assert "other processes had taken the processors" in result.coverage.missing[0]


def test_what_was_waited_after_they_have_gone_is_the_loaders(tmp_path: Path) -> None:
    result = result_of(tmp_path / "run", "DataLoadingBound", lambda step: WAITING, use(99, 30, until=500, wait=50))
    (finding,) = result.findings
    assert finding.first_step >= 450 and "num_workers=" in finding.suggestion and result.coverage.decided


def test_storage_that_is_slow_is_told_also_while_others_have_the_processors(tmp_path: Path) -> None:
    sleeping = {**phases(data=0.9, loader=0.9, forward=0.05, backward=0.05), "loader_workers": 2}
    (finding,) = result_of(tmp_path / "run", "DataLoadingBound", lambda step: sleeping, use(99, 30, wait=30)).findings
    assert finding.value == pytest.approx(1 - 0.1 / 0.7, abs=0.01)


def test_more_workers_are_not_advised_where_the_job_uses_all_processors(tmp_path: Path) -> None:
    (finding,) = result_of(tmp_path / "run", "DataLoadingBound", lambda step: WAITING, use(99, 96, wait=50)).findings
    assert finding.suggestion.startswith("all processors are in use") and "num_workers" not in finding.suggestion


def test_a_wait_that_no_worker_would_shorten_is_a_remark(tmp_path: Path) -> None:
    short = {**phases(data=0.0004, loader=0.0004, forward=0.0002, backward=0.0003), "loader_workers": 0}
    (finding,) = result_of(tmp_path / "run", "DataLoadingBound", lambda step: short, steps=30_000).findings
    assert finding.severity.value == "info" and "whole batches at once" in finding.suggestion


STEADY = phases(data=0.1, forward=0.3, backward=0.4, optimizer=0.2)
SLOW = phases(data=0.2, forward=0.6, backward=0.8, optimizer=0.4)


def from_step(step: int, then: dict[str, int], until: int = 10**9) -> Timing:
    return lambda now: then if step <= now < until else STEADY


@pytest.mark.parametrize(
    ("timing", "samples"),
    [
        (from_step(400, SLOW), use(99, 30, since=395, wait=60)),
        (from_step(400, SLOW, until=430), ()),
        (from_step(400, phases(data=0.1, forward=0.32, backward=1.2, optimizer=0.3)), ()),
        (lambda step: {**from_step(400, SLOW)(step), "batch_entries": 160 if step < 400 else 250}, ()),
    ],
    ids=["others have the processors", "half a minute", "more layers are trained", "batches grow"],
)
def test_steps_that_are_slow_on_purpose_or_for_others_are_no_drift(
    tmp_path: Path, timing: Timing, samples: Iterator[Sample]
) -> None:
    result = result_of(tmp_path / "run", "StepTimeDrift", timing, samples)
    assert not result.findings and result.coverage.decided


def test_steps_that_stay_slow_and_a_graph_that_grows_are_drift(tmp_path: Path) -> None:
    (finding,) = result_of(tmp_path / "slow", "StepTimeDrift", from_step(400, SLOW), use(60, 55)).findings
    assert 400 <= finding.first_step <= 520 and finding.value == pytest.approx(2)

    def growing(step: int) -> dict[str, int]:
        return phases(data=0.1, forward=0.3, backward=0.4 + step / 200, optimizer=0.2)

    (finding,) = result_of(tmp_path / "graph", "StepTimeDrift", growing).findings
    assert finding.evidence["phase"] == "backward"


@pytest.mark.parametrize(("job", "told"), [(20, "beside the job use 79 %"), (97, "the job itself uses 97 %")])
def test_who_has_the_processors_is_said(tmp_path: Path, job: float, told: str) -> None:
    (finding,) = result_of(tmp_path / "run", "CpuContention", lambda step: STEADY, use(99, job, wait=70)).findings
    assert told in finding.message and finding.value == pytest.approx(70)


def test_an_hour_with_some_waiting_is_quiet(tmp_path: Path) -> None:
    result = result_of(tmp_path / "run", "CpuContention", lambda step: STEADY, use(99, 30, wait=35))
    assert not result.findings and result.coverage.decided
    assert result.coverage.margin == pytest.approx(0.7, abs=0.01)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="not Linux")
def test_a_job_beside_two_that_never_rest_is_told_of_them(tmp_path: Path) -> None:
    processor = min(os.sched_getaffinity(0))
    others = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(2)]
    try:
        for other in others:
            os.sched_setaffinity(other.pid, {processor})
        process = forked.start(_train_on, processor, tmp_path / "run")
        process.join(timeout=200)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert process.exitcode == 0
    analysis = analyze(Trace(tmp_path / "run"), configure(["profiler"], ["CpuContention.seconds=1"]))
    assert [(finding.rule, finding.severity.value) for finding in analysis.findings] == [("CpuContention", "info")]
    assert analysis.findings[0].value > 50


def _train_on(processor: int, run: Path) -> None:
    os.sched_setaffinity(0, {processor})
    train(run, steps=60, spin=0.012)
