"""Values of parameters from text: as the command line and SageMaker's JSON have them."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

from stepwatch.rules.errors import RuleError
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


def split_list(text: str) -> tuple[str, ...]:
    """Entries of a list in text: between commas that stand in no bracket, without blanks around them."""
    return tuple(part for entry in _ENTRY.findall(text) if (part := entry.strip()))


def _spell(kind: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, str(kind))
