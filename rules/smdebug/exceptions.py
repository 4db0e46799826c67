"""Everything that ``smdebug.exceptions`` names."""

from __future__ import annotations

from stepwatch.probe.smdebug.errors import (
    InvalidCollectionConfiguration as InvalidCollectionConfiguration,
)
from stepwatch.probe.smdebug.errors import (
    SMDebugError as SMDebugError,
)
from stepwatch.probe.smdebug.errors import (
    SMDebugNotImplementedError as SMDebugNotImplementedError,
)
from stepwatch.probe.smdebug.errors import (
    SMDebugRuntimeError as SMDebugRuntimeError,
)
from stepwatch.probe.smdebug.errors import (
    SMDebugTypeError as SMDebugTypeError,
)
from stepwatch.probe.smdebug.errors import (
    SMDebugValueError as SMDebugValueError,
)
from stepwatch.rules.exceptions import (
    InvalidWorker as InvalidWorker,
)
from stepwatch.rules.exceptions import (
    MissingCollectionFiles as MissingCollectionFiles,
)
from stepwatch.rules.exceptions import (
    NoMoreData as NoMoreData,
)
from stepwatch.rules.exceptions import (
    ShapeUnavailableForStep as ShapeUnavailableForStep,
)
from stepwatch.rules.exceptions import (
    StepNotYetAvailable as StepNotYetAvailable,
)
from stepwatch.rules.exceptions import (
    StepUnavailable as StepUnavailable,
)
from stepwatch.rules.exceptions import (
    TensorUnavailable as TensorUnavailable,
)
from stepwatch.rules.exceptions import (
    TensorUnavailableForStep as TensorUnavailableForStep,
)


class SMDebugCustomerError(SMDebugError):
    """Something that the user's code did."""


class RuleEvaluationConditionMet(SMDebugError):
    """The condition of a rule is met at a step."""

    def __init__(self, rule_name: str, step: int, end_of_rule: bool = False) -> None:
        super().__init__(f"the condition of rule {rule_name} is met at step {step}")
        self.rule_name = rule_name
        self.step = step
        self.end_of_rule = end_of_rule


class InsufficientInformationForRuleInvocation(SMDebugError):
    """A rule lacks what it needs."""

    def __init__(self, rule_name: str, message: str) -> None:
        super().__init__(f"rule {rule_name} lacks information: {message}")
        self.rule_name = rule_name


class IndexReaderException(SMDebugError):
    """An index that cannot be read."""


class NoMoreProfilerData(SMDebugError):
    """The job ended before this time."""

    def __init__(self, timestamp: int) -> None:
        super().__init__(f"no profiler data after {timestamp}")
        self.timestamp = timestamp
