"""Errors of the trace store."""

from __future__ import annotations


class TraceError(ValueError):
    """A directory that cannot be used as a trace; the message is one line that says which and why."""
