"""Closing a hook when its process ends, however it ends."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol


class Closable(Protocol):
    """What is closed: a hook."""

    def close(self, status: str = "finished", reason: str = "") -> None:
        """Write out everything and say how the job ended."""

    def forget(self) -> None:
        """This is a forked child: leave the trace to the parent."""


_open: weakref.WeakSet[Any] = weakref.WeakSet()
_failure: list[str] = []
_installed = False
_previous_excepthook: Callable[..., Any] = sys.excepthook


def register(hook: Closable) -> None:
    """Close ``hook`` at interpreter exit, after an uncaught exception, and on SIGTERM.

    A SIGTERM handler of the script's own is left in place; then the script decides how it ends.
    """
    global _installed, _previous_excepthook
    _open.add(hook)
    if _installed:
        return
    _installed = True
    atexit.register(_at_exit)
    os.register_at_fork(after_in_child=_in_child)
    _previous_excepthook = sys.excepthook
    sys.excepthook = _note_exception
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def unregister(hook: Closable) -> None:
    """The hook is closed already."""
    _open.discard(hook)


def close_all(status: str, reason: str = "") -> None:
    """Close every open hook."""
    for hook in list(_open):
        hook.close(status, reason)


def describe_exception(kind: type[BaseException], error: BaseException | None) -> str:
    """Type and message of an exception on one line."""
    first_line = str(error).strip().splitlines()[:1]
    return f"{kind.__name__}: {first_line[0]}" if first_line else kind.__name__


def _at_exit() -> None:
    if _failure:
        close_all("exception", _failure[-1])
    else:
        close_all("finished")


def _note_exception(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    _failure.append(describe_exception(kind, error))
    _previous_excepthook(kind, error, traceback)


def _in_child() -> None:
    for hook in list(_open):
        hook.forget()
    _open.clear()
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    # The interrupted code may hold a lock that closing needs: close in another thread, and die there by
    # the signal's default action, so that the exit status is what it would have been without us.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def close_and_die() -> None:
        close_all("signal", "SIGTERM")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=close_and_die, name="stepwatch-sigterm", daemon=True).start()
