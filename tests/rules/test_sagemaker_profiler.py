"""SageMaker's profiler rules over recorded samples and steps: when they fire, and what must not make them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.tail import Tails
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import configure
from stepwatch.rules.errors import RuleError
from stepwatch.rules.finding import RuleResult, Status
from stepwatch.rules.profiler.stream import ProfileStream
from stepwatch.rules.replay import analyze
from stepwatch.rules.sagemaker_profiler import SAGEMAKER_PROFILER
from stepwatch.rules.sagemaker_profiler.report import ProfilerReport
from stepwatch.rules.step import Step

START = 1_700_000_000_000_000_000
HALF_SECOND = 500_000_000
Metrics = dict[tuple[str, str], float]


def record(run: Path, samples: Sequence[Metrics], steps: Sequence[StepRecord] = ()) -> Path:
    """A run with a sample every half second."""
    writer = TraceWriter(run, flush_seconds=1000)
    for number, metrics in enumerate(samples):
        now = START + number * HALF_SECOND
        writer.submit_system([(now, device, metric, value) for (device, metric), value in metrics.items()])
    for step in steps:
        writer.submit(step)
    writer.close("finished")
    return run


def gpu(
    use: float,
    memory: float = 50.0,
    *,
    cpu: float = 50.0,
    busiest: float = 50.0,
    wait: float = 0.0,
    name: str = "GPU-0",
) -> Metrics:
    return {
        ("node", "cpu_percent"): cpu,
        ("node", "cpu_busiest_core_percent"): busiest,
        ("node", "iowait_worst_core_percent"): wait,
        (name, "utilization_percent"): use,
        (name, "memory_used_bytes"): memory,
        (name, "memory_total_bytes"): 100.0,
    }


def verdict(run: Path, rule: str, *settings: str) -> RuleResult:
    (result,) = analyze(
        Trace(run), configure([f"sagemaker-profiler.{rule}"], [f"{rule}.{each}" for each in settings])
    ).results
    return result


FIRING: dict[str, tuple[list[str], Callable[[int], Metrics], Callable[[int], Metrics]]] = {
    # parameters, samples that fire, samples that do not
    "BatchSize": (["patience=100", "window=50"], lambda i: gpu(20, 30, cpu=20), lambda i: gpu(20, 90, cpu=20)),
    "CPUBottleneck": (["patience=100"], lambda i: gpu(5, busiest=95), lambda i: gpu(5, busiest=85)),
    "IOBottleneck": (["patience=100"], lambda i: gpu(5, wait=60), lambda i: gpu(15, wait=60)),
    "LowGPUUtilization": (["patience=100", "window=50"], lambda i: gpu(60), lambda i: gpu(75)),
    "GPUMemoryIncrease": (["patience=100"], lambda i: gpu(50, 20 + 40 * (i > 150)), lambda i: gpu(50, 20 + i * 0.1)),
    "LoadBalancing": (
        ["patience=100"],
        lambda i: gpu(99) | gpu(20 + i % 5, name="GPU-1"),
        lambda i: gpu(99) | gpu(98.5, name="GPU-1"),
    ),
}


@pytest.mark.parametrize("rule", FIRING)
def test_a_rule_fires_on_what_it_is_about_and_on_nothing_near_it(tmp_path: Path, rule: str) -> None:
    settings, bad, good = FIRING[rule]
    fired = verdict(record(tmp_path / "bad", [bad(i) for i in range(200)]), rule, *settings)
    assert fired.status is Status.ISSUES_FOUND
    assert fired.findings[0].value != fired.findings[0].threshold
    quiet = verdict(record(tmp_path / "good", [good(i) for i in range(200)]), rule, *settings)
    assert quiet.status is Status.NO_ISSUES_FOUND


@pytest.mark.parametrize("rule", FIRING)
def test_patience_is_strict_and_too_little_data_is_no_verdict(tmp_path: Path, rule: str) -> None:
    settings, bad, _ = FIRING[rule]
    result = verdict(record(tmp_path / "run", [bad(i) for i in range(100)]), rule, *settings)
    assert result.status is Status.STOPPED
    assert "100" in result.coverage.missing[0]


@pytest.mark.parametrize("rule", FIRING)
def test_a_machine_without_gpus_decides_nothing(tmp_path: Path, rule: str) -> None:
    run = record(tmp_path / "run", [{("node", "cpu_percent"): 99.0, ("node", "cpu_busiest_core_percent"): 99.0}] * 200)
    result = verdict(run, rule, "patience=100")
    assert result.status is Status.STOPPED
    assert result.coverage.missing == ("no GPU was sampled",)


def test_a_bottleneck_is_a_share_of_all_samples_since_the_start(tmp_path: Path) -> None:
    run = record(tmp_path / "run", [gpu(5, busiest=95)] * 60 + [gpu(90)] * 61)
    assert verdict(run, "CPUBottleneck", "patience=120", "threshold=49").findings[0].value == pytest.approx(
        100 * 60 / 121
    )
    assert verdict(run, "CPUBottleneck", "patience=120", "threshold=50").status is Status.NO_ISSUES_FOUND


def test_use_that_goes_up_and_down_is_low_utilisation_too(tmp_path: Path) -> None:
    run = record(tmp_path / "run", [gpu(95 * (i % 2)) for i in range(200)])
    finding = verdict(run, "LowGPUUtilization", "patience=100", "window=50").findings[0]
    assert "up and down" in finding.message


def steps(durations: Sequence[float], workers: int | None = None, mode: str = "TRAIN") -> list[StepRecord]:
    now, found = START, []
    for number, seconds in enumerate(durations):
        timing = {"duration_ns": int(seconds * 1e9), "data_ns": 0, "forward_ns": int(seconds * 4e8)}
        if workers is not None:
            timing |= {"loader_workers": workers, "loader_ns": 1000}
        found.append(StepRecord(number, mode, number, now, timing=timing))
        now += int(seconds * 1e9)
    return found


def test_outliers_are_counted_above_three_deviations(tmp_path: Path) -> None:
    for count, status in ((11, Status.ISSUES_FOUND), (10, Status.NO_ISSUES_FOUND)):
        durations = np.full(400, 0.1)
        durations[20 : 20 + 30 * count : 30] = 2.0
        result = verdict(record(tmp_path / str(count), [], steps(durations)), "StepOutlier")
        assert result.status is status
    assert result.coverage.decided


def test_steps_of_another_mode_do_not_count(tmp_path: Path) -> None:
    durations = np.full(400, 0.1)
    durations[20:350:30] = 2.0
    run = record(tmp_path / "run", [], steps(durations, mode="EVAL"))
    assert verdict(run, "StepOutlier", "mode=Step:ModeKeys.TRAIN").status is Status.STOPPED
    assert verdict(run, "StepOutlier", "mode=EVAL").status is Status.ISSUES_FOUND
    assert verdict(run, "StepOutlier", "mode=None").status is Status.ISSUES_FOUND


@pytest.mark.parametrize(("workers", "status"), [(0, "few"), (4, ""), (9, "more")])
def test_workers_are_held_against_the_cores(tmp_path: Path, workers: int, status: str) -> None:
    cores: Metrics = {(f"core:{number}", "cpu_percent"): 10.0 for number in range(4)}
    run = record(tmp_path / "run", [cores] * 40, steps([0.1] * 200, workers))
    found = verdict(run, "Dataloader").findings
    assert [status in finding.message for finding in found] == [True] * bool(status)


def test_a_start_without_steps_is_told_once(tmp_path: Path) -> None:
    late = steps([0.1] * 5)
    for step in late:
        step.time_ns += 200 * HALF_SECOND
    run = record(tmp_path / "run", [gpu(0)] * 300, late)
    assert len(verdict(run, "MaxInitializationTime", "threshold=1").findings) == 1
    assert verdict(run, "MaxInitializationTime", "threshold=2").status is Status.NO_ISSUES_FOUND


def test_the_report_runs_all_rules_and_gives_their_numbers(tmp_path: Path) -> None:
    run = record(tmp_path / "run", [gpu(5, busiest=95, cpu=40)] * 200, steps([0.1] * 200, workers=2))
    result = verdict(run, "ProfilerReport", "settings=CPUBottleneck_patience=100,lowgpuutilization_patience=100")
    assert "CPUBottleneck" in result.findings[0].message and "LowGPUUtilization" in result.findings[0].message

    report = ProfilerReport(settings=("CPUBottleneck_patience=100",))
    for event in ProfileStream(Trace(run), Tails(run)).poll(None, Trace(run).ranks):
        list(report.observe(event) if isinstance(event, Step) else report.sample(event))
    list(report.conclude())
    found = report.reports()
    assert found["CPUBottleneck"]["Datapoints"] == 200
    assert found["CPUBottleneck"]["Violations"] == 200
    assert found["CPUBottleneck"]["RuleTriggered"] == 2  # after a minute, and at the end
    assert "patience:100" in found["CPUBottleneck"]["RuleParameters"].split("\n")
    assert set(found["OverallSystemUsage"]["Details"]) == {Trace(run).nodes[0]}
    assert found["OverallFrameworkMetrics"]["Details"]["phase"]["TRAIN"] == pytest.approx(100)
    json.dumps(found)


def test_a_request_of_sagemaker_is_read(tmp_path: Path) -> None:
    request: dict[str, Any] = {
        "ProfilerRuleConfigurations": [
            {
                "RuleConfigurationName": "ProfilerReport-1700000000",
                "RuleEvaluatorImage": "image",
                "RuleParameters": {"rule_to_invoke": "ProfilerReport", "CPUBottleneck_cpu_threshold": "90"},
            },
            {
                "RuleConfigurationName": "LowGPUUtilization",
                "RuleEvaluatorImage": "image",
                "RuleParameters": {"rule_to_invoke": "LowGPUUtilization", "threshold_p95": "60"},
            },
        ]
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    one, other = configure([str(tmp_path / "request.json")])
    assert one.name == "ProfilerReport-1700000000"
    assert one.parameters == {"settings": ("CPUBottleneck_cpu_threshold=90",)}
    assert other.parameters == {"threshold_p95": 60.0}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("CPUBottleneck.threshold=101", "threshold is 101"),
        ("ProfilerReport.settings=CPU_threshold=1", "expected Rule_parameter=value"),
        ("ProfilerReport.settings=CPUBottleneck_nothing=1", "CPUBottleneck has threshold"),
        ("StepOutlier.stddev=0", "stddev is 0"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(setting: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        configure(["sagemaker-profiler"], [setting])


def test_all_twelve_are_there_and_a_run_without_samples_decides_nothing_about_the_machine(tmp_path: Path) -> None:
    assert len(SAGEMAKER_PROFILER) == 12
    run = record(tmp_path / "run", [], steps([0.1] * 20))
    results = analyze(Trace(run), configure(["sagemaker-profiler"])).results
    assert {result.status for result in results} <= {Status.STOPPED, Status.NO_ISSUES_FOUND}
    assert not any(result.findings for result in results)
