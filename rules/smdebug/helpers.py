"""Small helpers that rules written for smdebug import."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def no_refresh(trials: Any) -> Iterator[Any]:
    """For the length of a block trials stay as they are; queries here are cheap enough not to need it."""
    yield trials


@contextlib.contextmanager
def refresh(trials: Any) -> Iterator[Any]:
    """For the length of a block every query takes what is new, as it always does here."""
    yield trials


def parse_bool(value: Any, default: bool) -> Any:
    """A flag that SageMaker's configuration spells as text; ``default`` for None, and what is no text as it is.

    Raises:
        ValueError: a text that is neither.
    """
    if not isinstance(value, str):
        return default if value is None else value
    if value.lower() not in ("true", "false"):
        raise ValueError(f"flag is {value!r}; expected true or false")
    return value.lower() == "true"


def parse_list_from_str(value: str | list[str] | None, delimiter: str = ",") -> list[str]:
    """A list that SageMaker's configuration spells as text; blanks stay, as they do in smdebug."""
    if value is None:
        return []
    return value.split(delimiter) if isinstance(value, str) else value


def get_logger(name: str = "smdebug") -> logging.Logger:
    """Our logger."""
    return logging.getLogger("stepwatch")
