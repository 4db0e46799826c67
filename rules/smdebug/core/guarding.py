"""smdebug's guard around the functions that a framework calls: the first error ends the recording, not the job."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from stepwatch.rules.smdebug.core.logger import get_logger

BASE_ERROR_MESSAGE = (
    "SMDebug error has occurred, disabling SMDebug for the rest of the training job. Stack trace:"  # found in logs
)


class _Agent:
    """The one guard of a process.

    Attributes:
        disable_smdebug: whether an error was caught: guarded functions do nothing any more.
        hook: the hook in use; errors of one whose configuration is its user's own are raised.
    """

    def __init__(self) -> None:
        self.disable_smdebug = False
        self.hook: Any = None

    def set_hook(self, hook: Any) -> None:
        """This is the hook in use."""
        self.hook = hook

    def catch_smdebug_errors(
        self, default_return_val: Any = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator that guards a function.

        Args:
            default_return_val: what the function returns after an error, or what makes that of its arguments.
        """

        def instead(*args: Any, **kwargs: Any) -> Any:
            return default_return_val(*args, **kwargs) if callable(default_return_val) else default_return_val

        def guard(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def guarded(*args: Any, **kwargs: Any) -> Any:
                if self.disable_smdebug:
                    return instead(*args, **kwargs)
                try:
                    return function(*args, **kwargs)
                except Exception:
                    if self.hook is not None and not self.hook.has_default_configuration():
                        raise
                    get_logger().exception(BASE_ERROR_MESSAGE)
                    self.disable_smdebug = True
                    return instead(*args, **kwargs)

            return guarded

        return guard


class ErrorHandlingAgent:
    """Gives the guard of this process."""

    _agent: ClassVar[_Agent | None] = None

    @classmethod
    def get_error_handling_agent(cls) -> _Agent:
        """The guard, made at the first call."""
        if cls._agent is None:
            cls._agent = _Agent()
        return cls._agent


error_handling_agent = ErrorHandlingAgent.get_error_handling_agent()
