"""Rules that installed packages provide, by entry point.

A package names them in its pyproject.toml; each is a rule or a list of rules::

    [project.entry-points."stepwatch.rules"]
    TooSparse = "my_package.rules:TooSparse"
    our_rules = "my_package.rules:ALL"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from stepwatch.rules.errors import RuleError

GROUP = "stepwatch.rules"


def installed() -> dict[str, EntryPoint]:
    """Entry points by name; nothing of the packages is imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


def provided_under(name: str) -> EntryPoint | None:
    """The entry point of that name, whatever its case."""
    return next((point for key, point in installed().items() if key.lower() == name.lower()), None)


def classes_of(point: EntryPoint) -> list[Any]:
    """What an entry point stands for; its package is imported.

    Raises:
        RuleError: it cannot be imported.
    """
    try:
        found = point.load()
    except Exception as error:
        raise RuleError(f"{point.name}: {point.value} cannot be loaded: {type(error).__name__}: {error}") from None
    return list(found) if isinstance(found, list | tuple) else [found]
