"""What findings mean for the checkpoints that the job wrote."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.suspects import CORRUPTING, Onset, judge_checkpoints, last_healthy
from stepwatch.rules.finding import Finding, Severity


def onsets(trace: Trace, findings: Iterable[Finding]) -> list[Onset]:
    """Where the weights went wrong, as findings say."""
    return [
        Onset(each.rule, each.first_step, trace.attempts(each.rank).deciding(each.last_step))
        for each in findings
        if each.rule in CORRUPTING and each.severity is Severity.ERROR
    ]


def with_healthy_checkpoint(trace: Trace, finding: Finding) -> Finding:
    """The finding with the last healthy checkpoint named, where it spoils later ones and there is one."""
    troubles = onsets(trace, [finding])
    healthy = last_healthy(judge_checkpoints(trace, troubles)) if troubles else None
    if healthy is None:
        return finding
    return replace(
        finding,
        suggestion=f"{finding.suggestion} (the last healthy checkpoint: {healthy.path}, step {healthy.step})",
        evidence={**finding.evidence, "last_healthy_checkpoint": healthy.path},
    )
