"""Which rules there are, and how a rule is named and configured."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stepwatch.rules.errors import RuleError
from stepwatch.rules.finding import Severity
from stepwatch.rules.installed import classes_of, installed, provided_under
from stepwatch.rules.parameters import coerce, common_parameter
from stepwatch.rules.profiler import PROFILER
from stepwatch.rules.recommended import RECOMMENDED
from stepwatch.rules.rule import Rule
from stepwatch.rules.sagemaker import SAGEMAKER
from stepwatch.rules.sagemaker_profiler import SAGEMAKER_PROFILER
from stepwatch.rules.service.request import SCHEME
from stepwatch.rules.smdebug import install

RULE_SETS: dict[str, tuple[type[Rule], ...]] = {
    "recommended": (*RECOMMENDED, *PROFILER),
    "profiler": PROFILER,
    "sagemaker": SAGEMAKER,
    "sagemaker-profiler": SAGEMAKER_PROFILER,
}
"""A rule is named by its class, or by set and class (``sagemaker.VanishingGradient``) where two sets have it;
the class alone then means that of the first set."""

RULE_DOCS = {
    "recommended": "docs/rules/{}.md",
    "profiler": "docs/rules/{}.md",
    "sagemaker": "docs/sagemaker-rules.md",
    "sagemaker-profiler": "docs/sagemaker-profiler-rules.md",
}
"""By set the page of the documentation about a rule, in the repository."""

RULE_FILES = (".json", ".yaml", ".yml", ".toml")

COMMON = ("start_step", "end_step", "severity", "tensors")
"""Parameters of every rule: it is shown the global steps in [start_step, end_step), and of the tensors those in whose
names one of some expressions is found; its findings have this severity."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a rule: its type as written, and its default."""

    name: str
    type: str
    default: Any


@dataclass(frozen=True)
class RuleSpec:
    """A rule and its parameters; every rank is judged by an instance of its own.

    Attributes:
        rule: its class.
        parameters: keyword arguments of its constructor.
        label: name under which it is reported; that of the class where it is empty.
        start_step, end_step: the rule is shown the global steps in [start_step, end_step).
        severity: severity of all its findings; the rule's own choice where it is None.
        tensors: expressions that find the tensors that it is shown; all where there is none.
        stop: whether its configuration says that what it finds stops the job.
        job_prefix: how the name of that job begins in SageMaker, "" where the configuration does not say.
        tell: by which ("email" or "sms", endpoint) its configuration says that what it finds is told.
    """

    rule: type[Rule]
    parameters: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    start_step: int = 0
    end_step: int | None = None
    severity: Severity | None = None
    tensors: tuple[str, ...] = ()
    stop: bool = False
    job_prefix: str = ""
    tell: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Name under which it is reported."""
        return self.label or self.rule.__name__

    @property
    def qualified_name(self) -> str:
        """Name with the set of the rule, where it is one of ours."""
        return next((f"{key}.{self.name}" for key, rules in RULE_SETS.items() if self.rule in rules), self.name)

    @property
    def stops(self) -> bool:
        """Whether what it finds stops the job, whatever the other rules do."""
        return self.stop or bool(self.parameters.get("stop_training_on_fire"))

    @property
    def docs(self) -> str:
        """Page of the documentation about the rule, "" where it is none of ours."""
        name = next((key for key, rules in RULE_SETS.items() if self.rule in rules), "")
        return RULE_DOCS.get(name, "").format(self.rule.__name__)

    def judges(self, step: int) -> bool:
        """Whether the rule is shown a global step."""
        return step >= self.start_step and (self.end_step is None or step < self.end_step)

    def with_parameter(self, name: str, value: Any) -> RuleSpec:
        """The same with a parameter set, one of the rule's own or of :data:`COMMON`; text is converted.

        Raises:
            RuleError: there is no such parameter, or the text is not of its type.
        """
        own = [p.name for p in parameters_of(self.rule)]
        if name in own:
            value = coerce(self.rule, name, value) if isinstance(value, str) else value
            return replace(self, parameters={**self.parameters, name: value})
        if name not in COMMON:
            raise RuleError(f"{self.name} has no parameter {name!r}; it has: {', '.join([*sorted(own), *COMMON])}")
        common: dict[str, Any] = {name: common_parameter(f"{self.name}.{name}", name, value)}
        return replace(self, **common)

    def build(self) -> Rule:
        """A fresh instance.

        Raises:
            RuleError: a parameter is out of its range.
        """
        try:
            rule = self.rule(**self.parameters)
        except (TypeError, ValueError) as error:
            raise RuleError(f"{self.name}: {error}") from None
        rule.label = self.label
        return rule


def known_rules() -> dict[str, type[Rule]]:
    """Every built-in rule, by name and by set and name."""
    named = {f"{key}.{rule.__name__}": rule for key, rules in RULE_SETS.items() for rule in rules}
    for rules in RULE_SETS.values():
        for rule in rules:
            named.setdefault(rule.__name__, rule)
    return named


def parameters_of(rule: type[Rule]) -> list[Parameter]:
    """Parameters of a rule, from the signature of its constructor."""
    signature = inspect.signature(rule.__init__)
    return [
        Parameter(p.name, _annotation(p.annotation), p.default)
        for p in signature.parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def _annotation(written: Any) -> str:
    return written if isinstance(written, str) else inspect.formatannotation(written)


def resolve(name: str) -> list[RuleSpec]:
    """The rules of that name: a set, a built-in rule, ``file.py:Class``, ``package.module:Class``, a rule file,
    ``sagemaker://JOB``, or what an installed package provides under it (:mod:`stepwatch.rules.installed`).

    A class may be a rule of ours or one that was written for smdebug.

    Raises:
        RuleError: there is none; the nearest name is suggested.
    """
    if name.startswith(SCHEME):
        from stepwatch.rules.configuration import rules_of_job  # which needs this module

        return rules_of_job(name.removeprefix(SCHEME))
    if Path(name).suffix.lower() in RULE_FILES:
        from stepwatch.rules.configuration import read_rules  # which needs this module

        return read_rules(Path(name))
    if ":" in name:
        return [RuleSpec(_load(name))]
    by_name = {key.lower(): [RuleSpec(rule)] for key, rule in known_rules().items()}
    for key, rules in RULE_SETS.items():
        by_name[key] = [RuleSpec(rule) for rule in rules]
    found = by_name.get(name.strip().lower())
    if found is None and (provided := provided_under(name.strip())) is not None:
        return [RuleSpec(as_rule(rule, provided.value)) for rule in classes_of(provided)]
    if found is None:
        spelled = {key.lower(): key for key in (*known_rules(), *RULE_SETS, *installed())}
        near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.5)
        plain = [value for value in spelled.values() if "." not in value]
        hint = f"did you mean {spelled[near[0]]}?" if near else f"expected one of {', '.join(plain)}"
        raise RuleError(f"unknown rule {name!r}; {hint}")
    return found


def configure(rules: Sequence[str] | None, settings: Sequence[str] = ()) -> list[RuleSpec]:
    """The rules named, each once, with parameters set.

    Args:
        rules: names as for :func:`resolve`; a name may be a comma-separated list. None: "recommended".
        settings: ``Rule.parameter=value`` each.

    Raises:
        RuleError: a name, parameter or value that cannot be used.
    """
    names = [part for entry in rules or ["recommended"] for part in entry.split(",") if part.strip()]
    chosen: dict[str, RuleSpec] = {}
    for name in names:
        for spec in resolve(name):
            chosen.setdefault(spec.qualified_name, spec)
    if not chosen:
        raise RuleError("no rule was named; expected a rule or a set, e.g. recommended")
    for setting in settings:
        _apply(chosen, setting)
    for spec in chosen.values():
        spec.build()
    return list(_told_apart(chosen).values())


def _told_apart(chosen: dict[str, RuleSpec]) -> dict[str, RuleSpec]:
    """The same, with the set in the name of a rule of a later set that another has the name of."""
    taken: set[str] = set()
    for qualified, spec in chosen.items():
        if spec.name in taken:
            chosen[qualified] = replace(spec, label=qualified)
        taken.add(spec.name)
    return chosen


def _apply(chosen: dict[str, RuleSpec], setting: str) -> None:
    target, equals, text = setting.partition("=")
    rule_name, dot, parameter = target.rpartition(".")
    if not equals or not dot:
        raise RuleError(f"setting {setting!r} cannot be read; expected Rule.parameter=value")
    wanted = rule_name.strip().lower()
    name = next((key for key, spec in chosen.items() if wanted in (key.lower(), spec.name.lower())), None)
    if name is None:
        listed = ", ".join(spec.name for spec in chosen.values())
        raise RuleError(f"setting {setting!r}: {rule_name!r} is not among the rules: {listed}")
    chosen[name] = chosen[name].with_parameter(parameter.strip(), text.strip())


def _load(name: str) -> type[Rule]:
    """A user's rule from ``file.py:Class`` or ``package.module:Class``."""
    place, _, class_name = name.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except RuleError:
        raise
    except Exception as error:
        raise RuleError(f"{place} cannot be loaded: {type(error).__name__}: {error}") from None
    found = getattr(module, class_name, None)
    if not _is_rule(found):
        here = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Rule) and v is not Rule]
        raise RuleError(f"{place} has no rule {class_name!r}; it has: {', '.join(here) or 'none'}")
    return as_rule(found, name)


def as_rule(found: Any, name: str) -> type[Rule]:
    """What has this name as a rule; a class that was written for smdebug is adapted.

    Raises:
        RuleError: it is none, or an abstract one.
    """
    from stepwatch.rules.smdebug import rule as smdebug_rule  # which needs the replay, and that this module

    if not _is_rule(found):
        raise RuleError(f"{name} is no rule; expected a subclass of {Rule.__module__}.{Rule.__name__}")
    if inspect.isabstract(found):
        raise RuleError(f"{name} is abstract: it lacks {', '.join(sorted(found.__abstractmethods__))}")
    adapted: type[Rule] = smdebug_rule.adapt(found) if issubclass(found, smdebug_rule.Rule) else found
    return adapted


def _is_rule(found: Any) -> bool:
    from stepwatch.rules.smdebug import rule as smdebug_rule

    return isinstance(found, type) and issubclass(found, Rule | smdebug_rule.Rule)


def _load_file(path: Path) -> types.ModuleType:
    if not path.is_file():
        raise RuleError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise RuleError(f"{path} is not a Python file")
    install()  # the file may be one that was written for it
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
