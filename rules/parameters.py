"""Values of parameters from text: as the command line and SageMaker's JSON have them."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

from stepwatch.rules.errors import RuleError
from stepwatch.rules.finding import Severity
from stepwatch.rules.rule import Rule

_ENTRY = re.compile(r"(?:\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)|[^,])+")


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
        if kind is int and "." in text and float(text).is_integer():
            return int(float(text))
        if kind in (int, float, str):
            return kind(text)
    except (KeyError, ValueError):
        raise RuleError(f"{rule.__name__}.{parameter} is {text!r}; expected {_spell(kind)}") from None
    return split_list(text)


def common_parameter(spelled: str, name: str, value: Any) -> Any:
    """The value of a parameter that every rule has, from text or from what a rule file holds.

    Args:
        spelled: what it is called in errors.
        name: "start_step", "end_step", "severity" or "tensors".
        value: its value.

    Raises:
        RuleError: the value cannot be used.
    """
    none = value is None or (isinstance(value, str) and value.strip().lower() == "none")
    if name == "tensors":
        patterns = () if none else split_list(value) if isinstance(value, str) else tuple(value)
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise RuleError(f"{spelled}: {pattern!r} is not a regular expression: {error}") from None
        return patterns
    if name == "severity":
        allowed = [severity.value for severity in Severity]
        if not none and str(value).lower() not in allowed:
            raise RuleError(f"{spelled} is {value!r}; expected {', '.join(allowed)} or none")
        return None if none else Severity(str(value).lower())
    try:
        return (0 if name == "start_step" else None) if none else int(value)
    except (TypeError, ValueError):
        raise RuleError(f"{spelled} is {value!r}; expected a whole number") from None


def split_list(text: str) -> tuple[str, ...]:
    """Entries of a list in text: between commas that stand in no bracket, without blanks around them."""
    return tuple(part for entry in _ENTRY.findall(text) if (part := entry.strip()))


def _spell(kind: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, str(kind))
