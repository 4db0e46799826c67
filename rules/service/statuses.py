"""Evaluation statuses in the form of SageMaker's DescribeTrainingJob.

Of an entry's fields those are there that are true here: there is no evaluation job, so there is no
``RuleEvaluationJobArn``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from stepwatch.rules.catalogue import RULE_SETS, RuleSpec
from stepwatch.rules.finding import Finding, RuleResult, Status
from stepwatch.rules.profiler.base import ProfilerRule

_MAX_DETAILS = 1024  # characters that the service has room for


@dataclass
class _Evaluation:
    """One rule's entry."""

    name: str
    rule: str
    of_profiler: bool = False
    built_in: bool = True
    status: Status = Status.IN_PROGRESS
    details: str = ""
    modified: str = field(default_factory=lambda: _now())

    def become(self, status: Status, details: str) -> None:
        if (status, details) != (self.status, self.details):
            self.status, self.details, self.modified = status, details, _now()

    def to_json(self) -> dict[str, Any]:
        details = {"StatusDetails": self.details[:_MAX_DETAILS]} if self.details else {}
        return {
            "RuleConfigurationName": self.name,
            "RuleEvaluationStatus": self.status.value,
            **details,
            "LastModifiedTime": self.modified,
        }


class EvaluationStatuses:
    """The statuses of the rules of one training job, as they change.

    Args:
        job: its name.
        specs: the rules.
    """

    def __init__(self, job: str, specs: Iterable[RuleSpec]) -> None:
        self._job = job
        known = {rule for rules in RULE_SETS.values() for rule in rules}
        self._rules = {
            spec.name: _Evaluation(
                spec.name, spec.rule.__name__, issubclass(spec.rule, ProfilerRule), spec.rule in known
            )
            for spec in specs
        }

    def found(self, finding: Finding) -> None:
        """A rule has fired; what it finds later changes nothing, as in the service, where its evaluation is over."""
        evaluation = self._of(finding.rule)
        if evaluation.status is not Status.ISSUES_FOUND:
            evaluation.become(
                Status.ISSUES_FOUND,
                f"RuleEvaluationConditionMet: Evaluation of the rule {evaluation.rule} at step {finding.last_step} "
                "resulted in the condition being met\n",
            )

    def judged(self, results: Sequence[RuleResult]) -> None:
        """These are the verdicts."""
        for result in results:
            if result.findings:
                self.found(min(result.findings, key=lambda finding: finding.last_step))
            else:
                evaluation = self._of(result.rule)
                evaluation.become(result.status, _details(result, evaluation.built_in))

    def stop(self, status: Status) -> bool:
        """Judging is about to end (STOPPING) or has ended (STOPPED); whether there were rules without a verdict."""
        open_ones = [each for each in self._rules.values() if each.status in (Status.IN_PROGRESS, Status.STOPPING)]
        for evaluation in open_ones:
            evaluation.become(status, "")
        return bool(open_ones)

    def to_json(self) -> dict[str, Any]:
        """The statuses, those of rules about the machine in a list of their own."""
        lists: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for evaluation in self._rules.values():
            lists[evaluation.of_profiler].append(evaluation.to_json())
        return {
            "TrainingJobName": self._job,
            "DebugRuleEvaluationStatuses": lists[False],
            "ProfilerRuleEvaluationStatuses": lists[True],
        }

    def _of(self, name: str) -> _Evaluation:
        # A hang is found by the watcher itself, which no configuration names.
        return self._rules.setdefault(name, _Evaluation(name, name))


def _details(result: RuleResult, built_in: bool) -> str:
    if result.status is Status.ERROR:
        return f"{'InternalServerError' if built_in else 'ClientError'}: {result.detail}"
    return "" if result.coverage.decided else "; ".join(result.coverage.missing)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
