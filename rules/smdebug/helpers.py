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


def parse_bool(value: str | bool | None, default: bool) -> bool:
    """A flag that SageMaker's configuration spells as text; ``default`` for what is neither."""
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(str(value).strip().lower(), default)


def parse_list_from_str(value: str | list[str] | None, delimiter: str = ",") -> list[str]:
    """A list that SageMaker's configuration spells as text."""
    if value is None:
        return []
    return [part.strip() for part in value.split(delimiter)] if isinstance(value, str) else value


def get_logger(name: str = "smdebug") -> logging.Logger:
    """Our logger."""
    return logging.getLogger("stepwatch")
