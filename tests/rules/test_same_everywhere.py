"""The demonstration's runs, really trained: judged in the process, beside it and afterwards, with one result."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from stepwatch.cli.demo import job
from stepwatch.cli.demo.faults import FAULTS, HEALTHY
from stepwatch.probe.store.control import read_acknowledgement
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import Finding, Status
from stepwatch.rules.profiler import PROFILER
from stepwatch.rules.replay import Analysis, LiveAnalysis, analyze
from tests.forked import start

NAMES = [fault.name for fault in (HEALTHY, *FAULTS)]


@dataclass
class Judged:
    """One run, judged three times."""

    run: Path
    live: list[Finding]
    polls: int
    offline: Analysis


def _train_and_follow(name: str, run: Path) -> Judged:
    process = start(job.main, [name, str(run)])
    found: list[Finding] = []
    polls = 0
    live: LiveAnalysis | None = None
    while process.is_alive():
        time.sleep(0.15)
        if live is None:
            try:
                live = LiveAnalysis(Trace(run), configure(None))
            except TraceError:
                continue
        new = live.poll()
        polls += live.steps > 0
        found += new
    assert process.exitcode == 0
    assert live is not None
    found += live.conclude()
    return Judged(run, found, polls, analyze(Trace(run), configure(None)))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Judged]:
    folder = tmp_path_factory.mktemp("runs")
    with ThreadPoolExecutor(2) as pool:
        jobs = {name: pool.submit(_train_and_follow, name, folder / name) for name in NAMES}
        return {name: job.result() for name, job in jobs.items()}


@pytest.mark.parametrize("name", NAMES)
def test_findings_are_equal_in_process_live_and_offline(judged: dict[str, Judged], name: str) -> None:
    one = judged[name]
    offline = sorted(finding.id for finding in one.offline.findings)
    assert sorted(finding.id for finding in one.live) == offline
    recorded = Trace(one.run).findings()
    assert sorted(row["finding_id"] for row in recorded) == offline
    by_id = {finding.id: finding for finding in one.offline.findings}
    for row in recorded:
        assert row["message"] == by_id[row["finding_id"]].message
        assert row["value"] == pytest.approx(by_id[row["finding_id"]].value, nan_ok=True)
    assert one.polls >= 2 or one.offline.findings


@pytest.mark.parametrize(("name", "found_by"), [(fault.name, fault.found_by) for fault in FAULTS])
def test_every_fault_is_found(judged: dict[str, Judged], name: str, found_by: tuple[str, ...]) -> None:
    found = {finding.rule for finding in judged[name].offline.findings}
    assert found & set(found_by)


def test_the_healthy_run_is_quiet_and_every_rule_could_decide(judged: dict[str, Judged]) -> None:
    results = judged["healthy"].offline.results
    assert not [result.rule for result in results if result.findings]
    # This run has no minutes, by which some rules judge, no second rank, no sigmoid, no attention, no DataLoader,
    # no tokens, no baseline, too few steps for the noise of gradients, and neither clips nor scales these.
    without = {rule.__name__ for rule in PROFILER}
    without |= {"ReplicaDrift", "SaturatedActivation", "AttentionCollapse", "RepeatedBatch", "MostlyPadding"}
    without |= {"ClippingAlwaysActive", "LossScaleCollapse", "WorseThanBaseline", "GradientNoiseScale"}
    assert [(r.rule, r.status) for r in results if not r.coverage.decided and r.rule not in without] == []
    assert {r.status for r in results if r.rule not in without} == {Status.NO_ISSUES_FOUND}


@pytest.mark.parametrize("name", ["exploding", "nan"])
def test_a_job_that_is_lost_is_stopped_after_its_checkpoint(judged: dict[str, Judged], name: str) -> None:
    run = judged[name].run
    answer = read_acknowledgement(run, 0)
    assert answer is not None and answer.checkpoint is not None
    assert Path(answer.checkpoint).stat().st_size > 10_000
    assert answer.step < 60
    end = Trace(run).end(0)
    assert end is not None and end.status == "stopped"
    first = Trace(run).findings()
    stops = [(a["action"], a["outcome"]) for row in first for a in row["actions"] if row["severity"] == "error"]
    assert stops and set(stops) == {("stop", "done")}


def test_a_nan_names_the_tensor_that_went_bad_first(judged: dict[str, Judged]) -> None:
    finding = next(f for f in judged["nan"].offline.findings if f.rule == "ExplodingTensor")
    assert finding.tensors[0] == "gradient/Net_fc2.weight"
    assert finding.first_step == 1


def test_threads_of_a_watcher_do_not_share_state(judged: dict[str, Judged]) -> None:
    results: list[list[str]] = []

    def judge() -> None:
        results.append([f.id for f in analyze(Trace(judged["overfit"].run), configure(None)).findings])

    threads = [threading.Thread(target=judge) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2] != []
