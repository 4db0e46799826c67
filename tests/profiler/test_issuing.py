"""GPUs that wait for the host: found where it is certain, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.tail import Tails
from stepwatch.rules.profiler.allocation import SmallBatch
from stepwatch.rules.profiler.base import ProfilerRule
from stepwatch.rules.profiler.devices import GpuStarved
from stepwatch.rules.profiler.issuing import HostBound
from stepwatch.rules.profiler.stream import ProfileStream
from stepwatch.rules.step import Step
from tests.profiler.cuda_standin import GIB
from tests.profiler.made_up import GPU, SECOND, result_of

STEPS = 300


def gpus(*use: float, own: float | None = None) -> Iterator[tuple[float, str, str, float]]:
    """Samples of GPUs by how much each is used in per cent; ``own`` is what the job's process has on the first."""
    for second in range(STEPS):
        for number, percent in enumerate(use):
            yield second, f"{GPU}{number}", "utilization_percent", percent + second % 3 - 1
            yield second, f"{GPU}{number}", "memory_used_bytes", 9.0 * GIB
            if own is not None:
                yield second, f"{GPU}{number}", "own_memory_bytes", 0.0 if number else own


def phases(**shares: float) -> dict[str, int]:
    return {f"{phase}_ns": int(share * SECOND) for phase, share in shares.items()}


BUSY_HOST = phases(forward=0.3, backward=0.25, optimizer=0.4)


def test_an_optimizer_of_many_small_kernels_is_named(tmp_path: Path) -> None:
    (finding,) = result_of(tmp_path / "run", "HostBound", lambda step: BUSY_HOST, gpus(30), steps=STEPS).findings
    assert finding.value == pytest.approx(0.65, abs=0.02) and finding.tensors == (f"{GPU}0",)
    assert finding.evidence["phase"] == "optimizer" and "fused=True" in finding.suggestion
    assert "they wait for the host, mostly in the optimizer's step" in finding.message


def test_every_rank_and_its_gpu_count(tmp_path: Path) -> None:
    result = result_of(tmp_path / "run", "HostBound", lambda step: BUSY_HOST, gpus(20, 30), steps=STEPS, ranks=2)
    (finding,) = result.findings
    assert finding.value == pytest.approx(0.7, abs=0.02) and len(finding.tensors) == 2


def test_idle_gpus_of_others_do_not_hide_it(tmp_path: Path) -> None:
    samples = gpus(30, 95, own=8.0 * GIB)
    (finding,) = result_of(tmp_path / "run", "HostBound", lambda step: BUSY_HOST, samples, steps=STEPS).findings
    assert finding.tensors == (f"{GPU}0",)


@pytest.mark.parametrize(
    ("timing", "use"),
    [
        (BUSY_HOST, [96.0]),
        (BUSY_HOST, [70.0]),
        (phases(forward=0.2, backward=0.2, data=0.6, loader=0.6), [20.0]),
        (phases(forward=0.2, backward=0.6, collective=0.5), [25.0]),
        (BUSY_HOST, [25.0, 24.0, 26.0, 22.0]),
    ],
    ids=["busy", "in between", "waits for data", "waits for other ranks", "stages that take turns"],
)
def test_where_the_host_need_not_be_the_reason_nothing_is_said(
    tmp_path: Path, timing: dict[str, int], use: list[float]
) -> None:
    result = result_of(tmp_path / "run", "HostBound", lambda step: timing, gpus(*use), steps=STEPS)
    assert result.coverage.decided and not result.findings


@pytest.mark.parametrize("rule", ["HostBound", "GpuStarved", "SmallBatch"])
def test_a_job_on_the_processor_is_not_judged_by_the_gpus_of_others(tmp_path: Path, rule: str) -> None:
    result = result_of(tmp_path / "run", rule, lambda step: {"reserved_bytes": 0}, gpus(3), steps=STEPS)
    assert not result.findings
    assert result.coverage.missing == ("the job does not train on a GPU",)


@pytest.mark.parametrize("rule", [HostBound, GpuStarved, SmallBatch])
def test_samples_that_a_rule_is_not_shown_are_ones_that_it_does_not_look_at(
    tmp_path: Path, rule: type[ProfilerRule]
) -> None:
    samples = ((second / 2, *rest) for second, *rest in gpus(25, 95, own=8.0 * GIB))  # twice a second
    shown = result_of(tmp_path / "run", rule.__name__, lambda step: BUSY_HOST, samples, steps=STEPS)
    alone, found = rule(), []
    trace = Trace(tmp_path / "run")
    for event in ProfileStream(trace, Tails(trace.path)).poll(None, [0]):
        if isinstance(event, Step):
            found += alone.observe(event)
        elif alone.takes(event.layout):
            found += alone.sample(event)
    assert [finding.message for finding in found] == [finding.message for finding in shown.findings]
    assert found or rule is SmallBatch
