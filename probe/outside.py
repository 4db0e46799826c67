"""Records what a job does to its machine from outside, where it has no hook: its processes, the node, its GPUs."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from stepwatch.probe.sampler import SystemSampler
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.writer import TraceWriter


class NoSuchJob(Exception):
    """What was to be sampled cannot be started, or is not there; one line."""


def sample_job(run: Path, job: Sequence[str] | int, interval: float) -> int:
    """Sample a job until it ends, or until this process is interrupted or told to end.

    A job that is started here is told to end instead, and is waited for.

    Args:
        run: directory of the run, which must not hold one.
        job: the command that starts it, or the number of a process that runs. Its descendants belong to it.
        interval: seconds between samples, at least 0.05.

    Returns:
        The job's exit status as a shell tells it; 0 where it was not started here.

    Raises:
        NoSuchJob: the job cannot be started, or does not run.
        TraceError: the directory holds a run, or cannot be written.
    """
    running = _find(job) if isinstance(job, int) else None
    if not isinstance(job, int) and shutil.which(job[0]) is None:
        raise NoSuchJob(f"{job[0]}: no such program; expected the command that starts the job")
    if (run / "run.json").exists():
        raise TraceError(f"{run}: holds a run; expected a new directory")
    command = _command(running) if running else list(job)  # type: ignore[arg-type]
    name = Path(command[0]).name if command else f"process {job}"
    writer = TraceWriter(run, run_info={"job_name": name, "world_size": 1, "command": command, "config": {}})
    try:
        process = running or psutil.Popen(command)
    except OSError as error:
        writer.close("exception", str(error))
        raise NoSuchJob(f"{name}: cannot be started: {error.strerror}") from None
    writer.note(f"process {process.pid} was sampled from outside: there are no steps and no tensors")
    sampler = SystemSampler(interval, writer.submit_system, lambda: None, volumes=[run], process=process)
    sampler.start()
    ended = threading.Event()
    try:
        with _Signals(None if running else process, ended):
            status = _wait(process, ended)
    finally:
        sampler.stop()
    if status is None:
        writer.close("stopped", "sampling was ended while the job went on")
        return 0
    if status < 0:
        writer.close("signal", signal.Signals(-status).name)
        return 128 - status
    writer.close("exception" if status else "finished", f"exit status {status}" if status else "")
    return status


def _find(pid: int) -> psutil.Process:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return process
    raise NoSuchJob(f"process {pid} does not run; expected the number of a job's process on this machine")


def _command(process: psutil.Process) -> list[str]:
    """Its command line; empty where that may not be read."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _wait(process: psutil.Process, ended: threading.Event) -> int | None:
    """The job's exit status, 0 where that is not known; None where it goes on."""
    while not ended.is_set():
        try:
            return process.wait(timeout=0.2) or 0
        except psutil.TimeoutExpired:
            continue
    return None


class _Signals:
    """While it is entered, SIGINT and SIGTERM are the job's where it was started here, else they end the sampling.

    A terminal sends SIGINT to the job by itself.
    """

    def __init__(self, child: psutil.Process | None, ended: threading.Event) -> None:
        self._child = child
        self._ended = ended
        self._before: dict[int, object] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heard)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._child is None:
            self._ended.set()
        elif number == signal.SIGTERM or not os.isatty(0):
            with suppress(psutil.NoSuchProcess):
                self._child.send_signal(number)
