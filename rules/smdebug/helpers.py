"""Small helpers that rules written for smdebug import."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def no_refresh(trials: Any) -> Iterator[Any]:
    """For the length of a block a trial, or a list of trials, stays as it is, whatever is recorded meanwhile."""
    with _dynamic(trials, False):
        yield trials


@contextlib.contextmanager
def refresh(trials: Any) -> Iterator[Any]:
    """For the length of a block queries take what is new, as they do unless :func:`no_refresh` says otherwise."""
    with _dynamic(trials, True):
        yield trials


@contextlib.contextmanager
def _dynamic(trials: Any, wanted: bool) -> Iterator[None]:
    every = list(trials) if isinstance(trials, (list, tuple, set)) else [trials]
    before = [trial.dynamic_refresh for trial in every]
    for trial in every:
        trial.dynamic_refresh = wanted
    try:
        yield
    finally:
        for trial, was in zip(every, before, strict=True):
            trial.dynamic_refresh = was


def parse_bool(arg: Any, default: bool) -> Any:
    """A flag that SageMaker's configuration spells as text; ``default`` for None, and what is no text as it is.

    Raises:
        ValueError: a text that is neither.
    """
    if not isinstance(arg, str):
        return default if arg is None else arg
    if arg.lower() not in ("true", "false"):
        raise ValueError(f"flag is {arg!r}; expected true or false")
    return arg.lower() == "true"


def parse_list_from_str(arg: str | list[str] | None, delimiter: str = ",") -> list[str]:
    """A list that SageMaker's configuration spells as text; blanks stay, as they do in smdebug."""
    if arg is None:
        return []
    return arg.split(delimiter) if isinstance(arg, str) else arg
