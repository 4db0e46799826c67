"""Findings, verdicts and coverage: what a rule says."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stepwatch.rules.history import SeenSteps


class Severity(str, enum.Enum):
    """How bad a finding is; actions such as stop apply to ERROR unless configured otherwise."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """The higher the worse."""
        return list(Severity).index(self)


class Status(str, enum.Enum):
    """Status of a rule's evaluation, in SageMaker's words.

    NO_ISSUES_FOUND is said only of a rule that had what it needs to decide. A rule that had not ends as
    STOPPED (or stays IN_PROGRESS on a live run), and its coverage says what was missing.
    """

    IN_PROGRESS = "InProgress"
    NO_ISSUES_FOUND = "NoIssuesFound"
    ISSUES_FOUND = "IssuesFound"
    ERROR = "Error"
    STOPPING = "Stopping"
    STOPPED = "Stopped"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, said once, at the step at which the evidence sufficed.

    Attributes:
        rule: name of the rule.
        severity: how bad it is.
        first_step: global step at which the problem began, as far as the evidence shows.
        last_step: global step at which the rule decided.
        tensors: names of the tensors concerned, the most telling first.
        value: the measured number that decided.
        threshold: the number it was held against, in the same unit.
        message: one sentence that a tired person understands.
        suggestion: what to try.
        evidence: what to plot or print to see it: JSON-compatible, e.g. ``{"unit": ..., "series": [names]}``.
        rank: rank whose data showed it.
        docs: page of the documentation about the rule, "" where there is none.
    """

    rule: str
    severity: Severity
    first_step: int
    last_step: int
    tensors: tuple[str, ...]
    value: float
    threshold: float
    message: str
    suggestion: str
    evidence: dict[str, Any] = field(default_factory=dict)
    rank: int = 0
    docs: str = ""

    @property
    def id(self) -> str:
        """The same wherever and however often the same data is judged: actions run once per id."""
        key = f"{self.rule}|{self.rank}|{self.first_step}|{self.last_step}|{'|'.join(self.tensors)}"
        return hashlib.sha1(key.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints; non-finite numbers become strings ("nan", "inf")."""
        return {
            "rule": self.rule,
            "severity": self.severity.value,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "tensors": list(self.tensors),
            "value": json_number(self.value),
            "threshold": json_number(self.threshold),
            "message": self.message,
            "suggestion": self.suggestion,
            "evidence": json_tree(self.evidence),
            "rank": self.rank,
            "docs": self.docs,
        }


@dataclass(slots=True)
class Coverage:
    """What a rule looked at, and how far it was from firing.

    Attributes:
        decided: whether it had what it needs for a verdict.
        steps: number of steps that it judged.
        first_step, last_step: their range, None where there was none.
        tensors: number of tensors or scalar series that it judged.
        missing: what it would have needed, one phrase each, e.g. "gradients were not recorded".
        margin: nearest approach to firing, measured over threshold, so that 1 fires; None where undefined.
        closest: the tensor or series, and step, of that approach, in words.
    """

    decided: bool = False
    steps: int = 0
    first_step: int | None = None
    last_step: int | None = None
    tensors: int = 0
    missing: tuple[str, ...] = ()
    margin: float | None = None
    closest: str = ""

    @classmethod
    def of(
        cls,
        steps: Sequence[int] | SeenSteps,
        *,
        tensors: int,
        missing: tuple[str, ...],
        margin: float | None = None,
        closest: str = "",
    ) -> Coverage:
        """That of a rule which judged these steps, and decided unless something was missing."""
        first, last = (steps[0], steps[-1]) if steps else (None, None)
        return cls(not missing, len(steps), first, last, tensors, missing, margin, closest)

    def to_json(self) -> dict[str, Any]:
        """The ``coverage`` object of ``--json``."""
        return {
            "decided": self.decided,
            "steps": self.steps,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "tensors": self.tensors,
            "missing": list(self.missing),
            "margin": None if self.margin is None else json_number(self.margin),
            "closest": self.closest,
        }


@dataclass(slots=True)
class RuleResult:
    """The verdict of one rule over one run."""

    rule: str
    status: Status
    findings: list[Finding]
    coverage: Coverage
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """The entry of ``rules`` in ``analyze --json``."""
        result: dict[str, Any] = {
            "rule": self.rule,
            "status": self.status.value,
            "findings": [finding.to_json() for finding in self.findings],
            "coverage": self.coverage.to_json(),
        }
        if self.detail:
            result["detail"] = self.detail
        return result


def json_number(value: float) -> float | str:
    """``value``, or its name where JSON has no number for it."""
    if value != value:
        return "nan"
    if value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    return value


def json_tree(value: Any) -> Any:
    """The same with every number as :func:`json_number` has it."""
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, dict):
        return {key: json_tree(entry) for key, entry in value.items()}
    return [json_tree(entry) for entry in value] if isinstance(value, (list, tuple)) else value
