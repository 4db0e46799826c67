"""Rules written as smdebug's are: a condition asked of a trial at each global step."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterable

from stepwatch.rules.exceptions import (
    StepNotYetAvailable,
    StepUnavailable,
    TensorUnavailable,
    TensorUnavailableForStep,
)
from stepwatch.rules.finding import Coverage, Finding
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step
from stepwatch.rules.trial import Trial

_MISSING = (StepNotYetAvailable, StepUnavailable, TensorUnavailable, TensorUnavailableForStep)


class TrialRule(Rule):
    """Base of rules that query a trial::

        class LargeGradient(TrialRule):
            '''A gradient is larger than a limit.'''

            def __init__(self, *, limit: float = 10.0) -> None:
                super().__init__()
                self.limit = limit

            def invoke_at_step(self, step: int) -> bool:
                names = self.base_trial.tensor_names(collection="gradients")
                return any(self.base_trial.tensor(n).reduction_value(step, "max", abs=True) > self.limit for n in names)

    The trial holds what one rank has recorded up to the step, wherever the rule runs; whole tensors are not in
    it. A step at which a query finds nothing is passed over, as smdebug does.

    Attributes:
        base_trial: the trial.
    """

    def __init__(self) -> None:
        self.base_trial = Trial(self.name)
        self._last: Step | None = None
        self._met = False
        self._judged: list[int] = []
        self._missing: dict[str, None] = {}
        self._read: set[str] = set()

    @abstractmethod
    def invoke_at_step(self, step: int) -> bool:
        """Whether the condition is met at a global step; asked once for each, when all of it was recorded."""

    def observe(self, step: Step) -> Iterable[Finding]:
        """Ask about the global step before, when the next one begins."""
        found = self._ask() if self._last is not None and step.step != self._last.step else []
        self.base_trial.recorded.add(step)
        self._last = step
        return found

    def conclude(self) -> Iterable[Finding]:
        """Ask about the last step."""
        return self._ask() if self._last is not None else []

    def coverage(self) -> Coverage:
        """Steps at which the condition could be asked."""
        return Coverage(
            decided=bool(self._judged),
            steps=len(self._judged),
            first_step=self._judged[0] if self._judged else None,
            last_step=self._judged[-1] if self._judged else None,
            tensors=len(self._read),
            missing=() if self._judged else tuple(self._missing) or ("no step was recorded",),
        )

    def _ask(self) -> list[Finding]:
        step = self._last
        assert step is not None
        self.base_trial.tensors_read.clear()
        try:
            met = bool(self.invoke_at_step(step.step))
        except _MISSING as error:
            if len(self._missing) < 3:
                self._missing[str(error)] = None
            return []
        self._judged.append(step.step)
        read = tuple(self.base_trial.tensors_read)
        self._read.update(read)
        began, self._met = met and not self._met, met
        if not began:
            return []
        condition = (inspect.getdoc(self) or self.name).splitlines()[0].rstrip(".")
        return [
            self.finding(
                step,
                first_step=step.step,
                tensors=read,
                value=1,
                threshold=1,
                message=f"{condition}: the condition is met at step {step.step}",
                suggestion="look at the tensors that the rule reads",
            )
        ]
