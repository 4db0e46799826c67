"""Errors of the trace store."""

from __future__ import annotations


class TraceError(ValueError):
    """A directory that cannot be used as a trace; the message is one line that says which and why."""


def first_line(error: Exception) -> str:
    """The first line of its message, or what it is."""
    return (str(error) or type(error).__name__).splitlines()[0]
