"""What hangs on a module while it is recorded, and is nothing in what is made of the module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from stepwatch.probe.stopping import TrainingStopped
from stepwatch.probe.torch_state import is_traced


class Attached:
    """A function that torch calls with a module; not while it traces: it leaves nothing in a graph.

    Modules are copied, pickled and saved with all that hangs on them, and loaded where there may be no Stepwatch: in a
    copy its place is taken by a function of the standard library that does nothing.

    Args:
        call: the function.
        failed: told where an error was, and which, that then goes no further; only a stop does. None for a function
            that sees to its own errors: what it raises is meant for the script.
    """

    def __init__(self, call: Callable[..., object], failed: Callable[[str, Exception], None] | None = None) -> None:
        self._call = call
        self._failed = failed

    def __call__(self, *args: Any) -> None:
        """What torch calls."""
        if is_traced():
            return
        try:
            self._call(*args)
        except TrainingStopped:
            raise
        except Exception as error:
            if self._failed is None:
                raise
            self._failed(getattr(self._call, "__name__", type(self._call).__name__), error)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (contextlib.nullcontext(), "__exit__")
