"""Which rules there are, and how a rule is named and configured."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stepwatch.rules.errors import RuleError
from stepwatch.rules.recommended import RECOMMENDED
from stepwatch.rules.rule import Rule
from stepwatch.rules.smdebug import install

RULE_SETS: dict[str, tuple[type[Rule], ...]] = {"recommended": RECOMMENDED}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a rule: its type as written, and its default."""

    name: str
    type: str
    default: Any


@dataclass(frozen=True)
class RuleSpec:
    """A rule and its parameters; every rank is judged by an instance of its own."""

    rule: type[Rule]
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the rule."""
        return self.rule.__name__

    def build(self) -> Rule:
        """A fresh instance.

        Raises:
            RuleError: a parameter is out of its range.
        """
        try:
            return self.rule(**self.parameters)
        except (TypeError, ValueError) as error:
            raise RuleError(f"{self.name}: {error}") from None


def known_rules() -> dict[str, type[Rule]]:
    """Every built-in rule by name."""
    return {rule.__name__: rule for rules in RULE_SETS.values() for rule in rules}


def parameters_of(rule: type[Rule]) -> list[Parameter]:
    """Parameters of a rule, from the signature of its constructor."""
    signature = inspect.signature(rule.__init__)
    return [
        Parameter(p.name, str(p.annotation), p.default)
        for p in signature.parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def resolve(name: str) -> list[RuleSpec]:
    """The rules of that name: a set, a built-in rule, ``file.py:Class`` or ``package.module:Class``.

    A class may be a rule of ours or one that was written for smdebug.

    Raises:
        RuleError: there is none; the nearest name is suggested.
    """
    if ":" in name:
        return [RuleSpec(_load(name))]
    by_name = {key.lower(): [RuleSpec(rule)] for key, rule in known_rules().items()}
    for key, rules in RULE_SETS.items():
        by_name[key] = [RuleSpec(rule) for rule in rules]
    found = by_name.get(name.strip().lower())
    if found is None:
        spelled = {key.lower(): key for key in (*known_rules(), *RULE_SETS)}
        near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.5)
        hint = f"did you mean {spelled[near[0]]}?" if near else f"expected one of {', '.join(spelled.values())}"
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
            chosen.setdefault(spec.name, spec)
    if not chosen:
        raise RuleError("no rule was named; expected a rule or a set, e.g. recommended")
    for setting in settings:
        _apply(chosen, setting)
    for spec in chosen.values():
        spec.build()
    return list(chosen.values())


def _apply(chosen: dict[str, RuleSpec], setting: str) -> None:
    target, equals, text = setting.partition("=")
    rule_name, dot, parameter = target.partition(".")
    if not equals or not dot:
        raise RuleError(f"setting {setting!r} cannot be read; expected Rule.parameter=value")
    name = next((key for key in chosen if key.lower() == rule_name.strip().lower()), None)
    if name is None:
        raise RuleError(f"setting {setting!r}: {rule_name!r} is not among the rules: {', '.join(chosen)}")
    spec = chosen[name]
    known = {p.name for p in parameters_of(spec.rule)}
    parameter = parameter.strip()
    if parameter not in known:
        allowed = ", ".join(sorted(known)) or "none"
        raise RuleError(f"{name} has no parameter {parameter!r}; it has: {allowed}")
    value = coerce(spec.rule, parameter, text.strip())
    chosen[name] = replace(spec, parameters={**spec.parameters, parameter: value})


def coerce(rule: type[Rule], parameter: str, text: str) -> Any:
    """A parameter's value from text, by the type in the rule's signature.

    Raises:
        RuleError: the text is not of that type.
    """
    wanted = typing.get_type_hints(rule.__init__)[parameter]
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if type(None) in options and text.lower() == "none":
        return None
    kind = next(option for option in options if option is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
    except (KeyError, ValueError):
        raise RuleError(f"{rule.__name__}.{parameter} is {text!r}; expected {_spell(kind)}") from None
    return tuple(part.strip() for part in text.split(","))


def _spell(kind: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, str(kind))


def _load(name: str) -> type[Rule]:
    """A user's rule from ``file.py:Class`` or ``package.module:Class``."""
    place, _, class_name = name.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except RuleError:
        raise
    except Exception as error:
        raise RuleError(f"{place} cannot be loaded: {type(error).__name__}: {error}") from None
    from stepwatch.rules.smdebug import rule as smdebug_rule  # which needs the replay, and that this module

    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, smdebug_rule.Rule) and not inspect.isabstract(found):
        return smdebug_rule.adapt(found)
    if not (isinstance(found, type) and issubclass(found, Rule)):
        here = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Rule) and v is not Rule]
        raise RuleError(f"{place} has no rule {class_name!r}; it has: {', '.join(here) or 'none'}")
    if inspect.isabstract(found):
        raise RuleError(f"{name} is abstract: it lacks {', '.join(sorted(found.__abstractmethods__))}")
    return found


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
