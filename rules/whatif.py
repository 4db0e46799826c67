"""What rules would have found in a run with other parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.finding import Finding, RuleResult
from stepwatch.rules.replay import analyze


@dataclass(frozen=True)
class Change:
    """A rule with other parameters: what it found before, and what it finds with them."""

    rule: str
    before: tuple[Finding, ...]
    after: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """The entry of ``changes`` in ``analyze --json``."""
        return {"rule": self.rule, "before": _when(self.before), "after": _when(self.after)}


def changes(
    trace: Trace, before: Sequence[RuleSpec], after: Sequence[RuleSpec], results: Sequence[RuleResult]
) -> list[Change]:
    """What other parameters changed.

    Args:
        trace: the run.
        before: the rules as they were, in the same order.
        after: the same with other parameters.
        results: their verdicts.
    """
    pairs = zip(before, after, strict=True)
    differing = [index for index, (old, new) in enumerate(pairs) if replace(old, rule=new.rule) != new]
    if not differing:
        return []
    judged = analyze(trace, [before[index] for index in differing]).results
    return [
        Change(results[index].rule, tuple(old.findings), tuple(results[index].findings))
        for index, old in zip(differing, judged, strict=True)
    ]


def _when(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [
        {"step": f.last_step, "first_step": f.first_step, "severity": f.severity.value, "message": f.message}
        for f in findings
    ]
