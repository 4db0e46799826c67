"""Training jobs in processes of their own, forked from one that has imported torch.

A new interpreter spends four seconds of a core on importing torch, and what its optimizers import, before it trains.
For tests about what happens while a job runs; what happens when an interpreter ends needs one of its own.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
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


def stepwatch(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process, a directory and an environment of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "err")
        process = start(_command, [*map(str, arguments)], cwd or Path.cwd(), {**os.environ, **environment}, out, errors)
        process.join(timeout=180)
        process.kill()
        status = process.exitcode
        assert status is not None, f"stepwatch {arguments} does not end"
        return subprocess.CompletedProcess(arguments, status, out.read_text(), errors.read_text())


def run_text(code: str) -> None:
    """Run the text of a script."""
    _run(code, [])


def _as_rank(rank: int, count: int, port: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> None:
    os.chdir(folder)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(*arguments)


def _command(arguments: list[str], cwd: Path, environment: dict[str, str], out: Path, errors: Path) -> None:
    for number, path in ((1, out), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["stepwatch", *arguments]
    sys.path[0] = ""
    try:
        runpy.run_module("stepwatch.cli", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # an interpreter would, multiprocessing does not


def _run(code: str, arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})
