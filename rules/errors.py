"""Errors of the rules."""

from __future__ import annotations


class RuleError(ValueError):
    """A rule or parameter that does not exist or cannot be used; one line that says which and why."""
