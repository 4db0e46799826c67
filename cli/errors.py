"""How a command ends: exit statuses, and one line for every foreseen failure."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

NOTHING_FOUND = 0
ISSUES_FOUND = 1
UNUSABLE = 2
RULE_FAILED = 3
INTERRUPTED = 130
PIPE_CLOSED = 141


def fail(message: object, status: int = UNUSABLE) -> NoReturn:
    """Print one line on stderr and exit."""
    line = " ".join(str(message).split())
    print(f"stepwatch: {line}", file=sys.stderr)
    raise SystemExit(status)


def spell(error: Exception) -> str:
    """What went wrong, and with which file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def print_warnings_with_the_result() -> None:
    """Keep the log quiet, for a command that prints a run's warnings itself."""
    logging.getLogger("stepwatch").setLevel(logging.CRITICAL)


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around imports of libraries that an extra of the distribution brings: say so where one is missing.

    Args:
        name: of the extra.
        what: needs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "stepwatch").startswith("stepwatch"):
            raise
        fail(f"{what} needs {error.name}: pip install 'stepwatch[{name}]'")


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn bad input into one line and status 2, Ctrl-C into status 130, a closed pipe into silence."""

    @functools.wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            try:
                return command(*args, **kwargs)
            finally:
                sys.stdout.flush()  # here, where a closed pipe can still be met quietly
        except BrokenPipeError:
            # The reader has gone; give the interpreter somewhere to flush to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(PIPE_CLOSED) from None
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)
        except (ValueError, ImportError) as error:
            fail(error)
        except OSError as error:
            fail(spell(error))
        except Exception as error:
            if sys.flags.dev_mode:  # python -X dev -m stepwatch.cli ...
                raise
            fail(f"unforeseen {type(error).__name__}: {error}; this is a defect of Stepwatch, please report it")

    return call
