"""Training jobs in processes of their own, forked from one that has imported torch.

A new interpreter spends four seconds of a core on importing torch, and what its optimizers import, before it trains.
For tests about what happens while a job runs; what happens when an interpreter ends needs one of its own.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch._dynamo", "stepwatch.probe", "stepwatch.probe.judge", "stepwatch.rules.catalogue"]
)


def start(function: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """Call a function, found by its module and name, in a process of its own."""
    process = _context.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def start_script(code: str, *arguments: object) -> ForkServerProcess:
    """The same for the text of a script."""
    return start(_run, code, [str(argument) for argument in arguments])


def _run(code: str, arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})
