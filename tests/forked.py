"""Training jobs in processes of their own, forked from one that has imported torch.

A new interpreter spends four seconds of a core on importing torch, and what its optimizers import, before it trains.
For tests about what happens while a job runs; what happens when an interpreter ends needs one of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
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


def ranks(count: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> None:
    """Call it in so many processes that are the ranks of a job, in that folder, as torchrun would, and wait for them.

    Raises:
        AssertionError: one of them failed; what it said is on standard error.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(_as_rank, rank, count, port, folder, function, *arguments) for rank in range(count)]
    try:
        for process in processes:
            process.join(timeout=180)
        assert [process.exitcode for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()
            process.join()


def run_text(code: str) -> None:
    """Run the text of a script."""
    _run(code, [])


def _as_rank(rank: int, count: int, port: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> None:
    os.chdir(folder)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(*arguments)


def _run(code: str, arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})
