"""What smdebug raises, under its names, so that ``except`` clauses written for it still fit."""

from __future__ import annotations


class SMDebugError(Exception):
    """Root of them all."""


class SMDebugTypeError(SMDebugError, TypeError):
    """A value of the wrong type."""


class SMDebugValueError(SMDebugError, ValueError):
    """A value that cannot be used."""


class SMDebugRuntimeError(SMDebugError, RuntimeError):
    """Something that cannot be done now."""


class SMDebugNotImplementedError(SMDebugError, NotImplementedError):
    """Something that is not provided."""


class InvalidCollectionConfiguration(SMDebugError):
    """A collection selects nothing."""

    def __init__(self, c_name: str) -> None:
        super().__init__(f"collection {c_name} has neither an expression nor names")
        self.c_name = c_name
