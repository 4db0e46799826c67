"""How a command ends: exit statuses, and one line for every foreseen failure."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

NOTHING_FOUND = 0
ISSUES_FOUND = 1
UNUSABLE = 2
RULE_FAILED = 3
INTERRUPTED = 130


def fail(message: object, status: int = UNUSABLE) -> NoReturn:
    """Print one line on stderr and exit."""
    line = " ".join(str(message).split())
    print(f"stepwatch: {line}", file=sys.stderr)
    raise SystemExit(status)


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn bad input into one line and status 2, Ctrl-C into status 130, a closed pipe into silence."""

    @functools.wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:
            # The reader has gone; give the interpreter somewhere to flush to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(NOTHING_FOUND) from None
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)
        except (ValueError, ImportError) as error:
            fail(error)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}")

    return call
