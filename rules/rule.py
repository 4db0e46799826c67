"""The base class of rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal

from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.step import Step

Quieter = Literal["higher", "lower"]


class Rule(ABC):
    """Decides, step by step, whether one kind of problem is present in one rank's trace.

    A rule is an object with state: :meth:`observe` gets every step once, in the order in which the job
    recorded them, whether in the training process, beside a live run, or over a finished one; so its
    findings are the same in all three. Parameters are keyword-only arguments of ``__init__`` with types
    and defaults, checked there (ValueError that names the parameter, its value and what is allowed);
    configuration reads them from the signature. State is per instance, and an instance judges one rank, unless
    it compares ranks.

    Attributes:
        severity: severity of its findings unless it says otherwise.
        derived: derived quantities it needs, which a hook with this rule records
            (see :mod:`stepwatch.probe.derived`).
        compares_ranks: whether one instance gets the steps of all ranks, those of each in order.
        calibrated: the parameters that say how far is too far, and whether a "higher" or a "lower" one makes the rule
            quieter; ``stepwatch rules calibrate`` fits them to runs.
        whole_tensors: whether it looks at :attr:`Step.values`; they are read only for rules that do.
        label: name given to it by a configuration.
    """

    severity: ClassVar[Severity] = Severity.ERROR
    derived: ClassVar[tuple[str, ...]] = ()
    compares_ranks: ClassVar[bool] = False
    calibrated: ClassVar[tuple[tuple[str, Quieter], ...]] = ()
    whole_tensors: ClassVar[bool] = False
    label: str = ""

    @property
    def name(self) -> str:
        """Name under which it is configured and reported."""
        return self.label or type(self).__name__

    @abstractmethod
    def observe(self, step: Step) -> Iterable[Finding]:
        """Look at one step; yield or return what is now certain.

        A problem that lasts is said once, when the evidence suffices, not at every step.
        """

    def forget(self, rank: int) -> None:  # noqa: B027
        """A new attempt of the job has replaced steps of a rank; asked only of rules that compare ranks."""

    def waited(self, now_ns: int) -> Iterable[Finding]:
        """A live run has recorded nothing more by this time (nanoseconds since the epoch).

        Asked by those who watch a run; what is found must be what :meth:`observe` would find when the run goes on.
        """
        return ()

    def conclude(self) -> Iterable[Finding]:
        """The run is over: what could be said only then. Called at most once."""
        return ()

    @abstractmethod
    def coverage(self) -> Coverage:
        """What was looked at so far, and what was missing."""

    def finding(
        self,
        step: Step,
        *,
        first_step: int,
        tensors: Iterable[str],
        value: float,
        threshold: float,
        message: str,
        suggestion: str,
        evidence: dict[str, object] | None = None,
        severity: Severity | None = None,
    ) -> Finding:
        """A finding of this rule decided at ``step``."""
        return Finding(
            rule=self.name,
            severity=severity or self.severity,
            first_step=first_step,
            last_step=step.step,
            tensors=tuple(tensors),
            value=float(value),
            threshold=float(threshold),
            message=message,
            suggestion=suggestion,
            evidence=evidence or {},
            rank=step.rank,
        )
