"""The Rule of smdebug, how a script invokes it, and how our engine runs it."""

from __future__ import annotations

import inspect
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from stepwatch.rules.exceptions import StepUnavailable, TensorUnavailable, TensorUnavailableForStep
from stepwatch.rules.smdebug.action import Actions
from stepwatch.rules.smdebug.exceptions import NoMoreProfilerData, RuleEvaluationConditionMet
from stepwatch.rules.tensor import Tensor
from stepwatch.rules.trial import Trial
from stepwatch.rules.trial_rule import TrialRule

log = logging.getLogger("stepwatch")

_MISSING = (TensorUnavailableForStep, StepUnavailable, TensorUnavailable)


class RequiredTensors:
    """Tensors and steps that a rule wants to be there before it is asked."""

    def __init__(self, base_trial: Trial, other_trials: Sequence[Trial] = ()) -> None:
        self._base = base_trial
        self._wanted: dict[Trial, dict[str, list[int]]] = {trial: {} for trial in (base_trial, *other_trials)}

    def add(
        self, name: str, steps: Iterable[int], trial: Trial | None = None, should_match_regex: bool = False
    ) -> None:
        """Want a tensor, or all whose name an expression finds, at these steps."""
        trial = trial or self._base
        names = [n for n in trial.tensor_names() if re.match(name, n)] if should_match_regex else [name]
        for each in names:
            trial.tensor(each)
            self._wanted.setdefault(trial, {}).setdefault(each, []).extend(steps)

    def get_names(self, trial: Trial | None = None) -> list[str]:
        """Names wanted of a trial."""
        return list(self._wanted[trial or self._base])

    def get_tensor_steps(self, name: str, trial: Trial | None = None) -> list[int]:
        """Steps wanted of a tensor."""
        return list(self._wanted[trial or self._base].get(name, ()))

    def get(self, trial: Trial | None = None) -> list[Tensor]:
        """The tensors wanted of a trial."""
        trial = trial or self._base
        return [trial.tensor(name) for name in self._wanted[trial]]

    def clear(self) -> None:
        """Want nothing."""
        for wanted in self._wanted.values():
            wanted.clear()

    def fetch(self) -> None:
        """Wait for the steps and read the values.

        Raises:
            TensorUnavailableForStep: a whole tensor was not saved.
        """
        for trial, wanted in self._wanted.items():
            trial.wait_for_steps(sorted({step for steps in wanted.values() for step in steps}))
            for name, steps in wanted.items():
                for step in steps:
                    trial.tensor(name).value(step)


class RequiredTensorsForTrial(RequiredTensors):
    """The same of one trial."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)


class Rule(ABC):
    """Base of rules written for smdebug; every form in which its constructor was ever called is taken.

    ``Rule(trial)``, ``Rule(trial, other_trials)``, ``Rule(trial, action_str)`` and both by keyword, in any order.

    Attributes:
        base_trial, other_trials, trials: what it looks at.
        req_tensors: what :meth:`set_required_tensors` asked for.
        rule_name: name of its class.
        report: counts and details that some rules keep.
    """

    def __init__(
        self, base_trial: Trial, *positional: Any, other_trials: Sequence[Trial] | None = None, action_str: str = ""
    ) -> None:
        for argument in positional:
            if isinstance(argument, str):
                action_str = argument
            elif argument is not None:
                other_trials = argument
        self._actions = Actions(action_str, type(self).__name__)
        self.base_trial = base_trial
        self.other_trials = list(other_trials) if other_trials else other_trials
        self.trials = [base_trial, *(other_trials or ())]
        self.req_tensors = RequiredTensors(base_trial, other_trials or ())
        self.logger = log
        self.rule_name = type(self).__name__
        self.report: dict[str, Any] = {
            "RuleTriggered": 0,
            "Violations": 0,
            "Details": {},
            "Datapoints": 0,
            "RuleParameters": "",
        }

    def set_required_tensors(self, step: int) -> None:  # noqa: B027 - a rule need not have it
        """Say what has to be there before the rule is asked about a global step."""

    @abstractmethod
    def invoke_at_step(self, step: int) -> bool:
        """Whether the condition is met at a global step."""

    def invoke(self, step: int) -> None:
        """Ask about a step.

        Raises:
            RuleEvaluationConditionMet: the condition is met.
            StepUnavailable, NoMoreData: the step was not recorded.
        """
        for trial in self.trials:
            trial.wait_for_steps([step])
        self.req_tensors.clear()
        self.set_required_tensors(step)
        self.req_tensors.fetch()
        if self.invoke_at_step(step):
            self._actions.invoke()
            raise RuleEvaluationConditionMet(self.rule_name, step)


def invoke_rule(
    rule_obj: Rule, start_step: int = 0, end_step: int | None = None, raise_eval_cond: bool = False
) -> None:
    """Ask a rule about every step of [start_step, end_step), recorded or not.

    Raises:
        NoMoreData: the job has ended; without ``end_step`` it always ends so.
        RuleEvaluationConditionMet: with ``raise_eval_cond``.
    """
    step = start_step
    while end_step is None or step < end_step:
        try:
            rule_obj.invoke(step)
        except _MISSING as error:
            log.debug("%s at step %d: %s", rule_obj.rule_name, step, error)
        except RuleEvaluationConditionMet as met:
            if raise_eval_cond:
                raise
            log.warning("%s", met)
            if met.end_of_rule:
                return
        except NoMoreProfilerData:
            return
        step += 1


class _AdaptedRule(TrialRule):
    """A rule of smdebug as our engine runs it."""

    user_class: ClassVar[type[Rule]]
    _rule: Rule

    def invoke_at_step(self, step: int) -> bool:
        """Ask the user's rule."""
        try:
            self._rule.invoke(step)
        except RuleEvaluationConditionMet:
            return True
        return False


def adapt(user_class: type[Rule]) -> type[TrialRule]:
    """A rule for our engine that asks ``user_class``; its parameters are those of the user's constructor."""
    parameters = list(_parameters(user_class))

    def __init__(self: _AdaptedRule, **values: Any) -> None:
        TrialRule.__init__(self)
        self._rule = user_class(self.base_trial, **values)
        self._rule._actions = Actions()  # what is done is said by the configuration that the engine has

    __init__.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    __init__.__annotations__ = {p.name: p.annotation for p in parameters}
    content = {
        "__init__": __init__,
        "__doc__": user_class.__doc__,
        "__module__": user_class.__module__,
        "user_class": user_class,
    }
    return type(user_class.__name__, (_AdaptedRule,), content)


def _parameters(user_class: type[Rule]) -> Iterator[inspect.Parameter]:
    """Of the constructor, all but the trials and the actions; the type is that of the default, or text."""
    for parameter in list(inspect.signature(user_class).parameters.values())[1:]:
        if parameter.name in ("other_trials", "action_str") or parameter.kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            continue
        default = parameter.default
        kind = type(default) if isinstance(default, (bool, int, float)) else str
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind)
