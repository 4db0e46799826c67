"""Ends the processes of a job that does not answer: SIGTERM, and SIGKILL after a time of grace."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import psutil

from stepwatch.probe.store.identity import boot_id
from stepwatch.probe.store.reader import Trace

_POLL_SECONDS = 0.1


class NotThatProcess(Exception):
    """The recorded process cannot be found, or what has its number now is another one."""


class ProcessGone(NotThatProcess):
    """The recorded process has ended."""


def recorded_process(identity: dict[str, Any]) -> psutil.Process:
    """The very process that was recorded: same host, boot, pid, start time, executable and user.

    Raises:
        NotThatProcess: one of them differs; the message says which.
    """
    if identity.get("host") != socket.gethostname():
        raise NotThatProcess(f"it runs on {identity.get('host')}, this is {socket.gethostname()}")
    if identity.get("boot_id", "") != boot_id():
        raise ProcessGone("the machine was started again since")
    if identity.get("pid") == os.getpid():
        raise NotThatProcess("it is this process: it imports what smdebug records")
    try:
        process = psutil.Process(int(identity["pid"]))
        if abs(process.create_time() - float(identity["process_start_time"])) >= 1:
            raise ProcessGone(f"process {process.pid} was started at another time: the number was given again")
        recorded = os.path.realpath(str(identity["executable"]))
        if os.path.realpath(process.exe()) != recorded:
            raise NotThatProcess(f"process {process.pid} runs {process.exe()}, recorded was {recorded}")
        if process.username() != identity["user"]:
            raise NotThatProcess(f"process {process.pid} is {process.username()}'s, recorded was {identity['user']}")
    except psutil.NoSuchProcess:
        raise ProcessGone(f"process {identity['pid']} is gone") from None
    except psutil.AccessDenied:
        raise NotThatProcess(f"process {identity['pid']} cannot be looked at: not permitted") from None
    except (KeyError, TypeError, ValueError):
        raise NotThatProcess("what was recorded of it is incomplete") from None
    return process


def find_processes(trace: Trace, say: Callable[[str], None]) -> tuple[dict[int, psutil.Process], bool]:
    """Processes of the ranks that run on this machine, and whether those are all that may run.

    Args:
        trace: the run.
        say: told which rank is left alone, and why.
    """
    processes: dict[int, psutil.Process] = {}
    complete = True
    for rank in trace.ranks:
        entries = trace.attempts(rank).entries
        try:
            processes[rank] = recorded_process(entries[-1] if entries else {})
        except NotThatProcess as error:
            if trace.end(rank) is None:
                say(f"rank {rank} is left alone: {error}")
                complete &= isinstance(error, ProcessGone)
    return processes, complete


def terminate(trace: Trace, grace: float, say: Callable[[str], None]) -> bool:
    """End the processes of all ranks that run on this machine; whether none is left.

    SIGTERM lets the hook write what it has. What is still there after ``grace`` seconds gets SIGKILL, with the
    processes that it has started.

    Args:
        trace: the run.
        grace: seconds.
        say: told of everything that is done or cannot be done.
    """
    processes, complete = find_processes(trace, say)
    children = [child for process in processes.values() for child in _children(process)]
    left = _signal(processes, "SIGTERM", psutil.Process.terminate, say)
    deadline = time.monotonic() + grace
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        left = {rank: process for rank, process in left.items() if _runs(process)}
    if left:
        left = _signal(left, "SIGKILL", psutil.Process.kill, say)
        for child in children:
            if _runs(child):
                child.kill()
        psutil.wait_procs(list(left.values()), timeout=5)
    return complete and not any(_runs(process) for process in left.values())


def _signal(
    processes: dict[int, psutil.Process], name: str, send: Callable[[psutil.Process], None], say: Callable[[str], None]
) -> dict[int, psutil.Process]:
    """Send it; psutil itself refuses where the number has been given to another process meanwhile."""
    for rank, process in processes.items():
        try:
            send(process)
            say(f"rank {rank}: sent {name} to process {process.pid}")
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:
            say(f"rank {rank}: {name} to process {process.pid} is not permitted")
    return {rank: process for rank, process in processes.items() if _runs(process)}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
