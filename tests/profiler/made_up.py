"""Made-up jobs for rules about devices that this machine lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import Finding, RuleResult
from stepwatch.rules.replay import analyze
from tests.profiler.cuda_standin import GIB

SECOND = 10**9
GPU = "GPU-0f3ae210-1111"


def result_of(
    run: Path,
    rule: str,
    timing: Callable[[int], dict[str, int]],
    samples: Iterable[tuple[float, str, str, float]] = (),
    *,
    steps: int = 1000,
    ranks: int = 1,
) -> RuleResult:
    """A job of steps of a second on a GPU; ``samples`` are (seconds, device, metric, value)."""
    began = 10**18
    for rank in range(ranks):
        writer = TraceWriter(run, rank=rank, run_info={"start_ns": began, "world_size": ranks})
        for step in range(steps):
            whole = {"duration_ns": SECOND, "data_ns": 0, "forward_ns": SECOND // 3, "backward_ns": SECOND // 2}
            whole["reserved_bytes"] = 2 * GIB
            at = began + step * SECOND
            writer.submit(StepRecord(step, "TRAIN", step, at, timing={**whole, **timing(step)}))
        if rank == 0:
            writer.submit_system([(began + int(when * SECOND), *rest) for when, *rest in samples])
        writer.close("finished", last_step=steps)
    (result,) = analyze(Trace(run), configure([rule])).results
    assert not result.detail, result.detail
    return result


def judged(
    run: Path,
    rule: str,
    timing: Callable[[int], dict[str, int]],
    samples: Iterable[tuple[float, str, str, float]] = (),
) -> list[Finding]:
    """What the rule found, which must have been able to decide."""
    result = result_of(run, rule, timing, samples)
    assert result.coverage.decided, result.coverage.missing
    return result.findings
