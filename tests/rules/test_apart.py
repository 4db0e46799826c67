"""A long run is judged in two processes, with the verdicts of one."""

from __future__ import annotations

import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules import apart
from stepwatch.rules.apart import Judging
from stepwatch.rules.catalogue import RuleSpec, configure
from stepwatch.rules.profiler import DiskFilling
from stepwatch.rules.replay import analyze

SECOND = 10**9


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The loss becomes NaN, and the disk fills."""
    run = tmp_path_factory.mktemp("apart") / "run"
    writer = TraceWriter(run, run_info={"start_ns": 10**18})
    for step in range(1200):
        now = 10**18 + step * SECOND
        loss = 1 / (1 + step) if step < 900 else float("nan")
        timing = {"duration_ns": SECOND, "data_ns": 0, "forward_ns": SECOND // 2}
        writer.submit(StepRecord(step, "TRAIN", step, now, timing=timing, scalars=[("loss", loss)]))
        writer.submit_system([(now, "volume:/data", "free_bytes", (4000.0 - step) * 2**20)])
    writer.close("finished", last_step=1200)
    return Trace(run)


def test_the_verdicts_are_those_of_one_process(troubled: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_WORTH_BYTES", 0)
    monkeypatch.setattr(apart, "processors", lambda: 2)
    specs = configure(None)
    with Judging(troubled, specs) as judging:
        two = judging.result()
    one = analyze(troubled, specs)
    assert [(r.rule, r.status, r.coverage) for r in two.results] == [
        (r.rule, r.status, r.coverage) for r in one.results
    ]
    assert [str(finding) for finding in two.findings] == [str(finding) for finding in one.findings]
    assert {"DiskFilling", "DivergingLoss"} <= {finding.rule for finding in two.findings}


def test_a_process_that_dies_is_done_without(troubled: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_WORTH_BYTES", 0)
    monkeypatch.setattr(apart, "processors", lambda: 2)
    spec = RuleSpec(DiskFilling)
    with Judging(troubled, [spec]) as judging:
        assert judging._executor is not None
        for process in judging._executor._processes.values():
            process.kill()
        assert [finding.rule for finding in judging.result().findings] == ["DiskFilling"]


def test_a_short_run_is_judged_here(troubled: Trace) -> None:
    with Judging(troubled, configure(["DiskFilling"])) as judging:
        assert judging._executor is None
        assert [finding.rule for finding in judging.result().findings] == ["DiskFilling"]
