"""Samples the use of the node, of the job's processes and of its GPUs, in a thread beside the training."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from stepwatch.probe.system.amd import AmdDevices
from stepwatch.probe.system.cgroup import ControlGroup
from stepwatch.probe.system.node import Cores, Disks, Memory, Network, Pressure, Processors, Volumes
from stepwatch.probe.system.nvidia import NvidiaDevices
from stepwatch.probe.system.process import OneProcess, ProcessTree
from stepwatch.probe.system.source import Reading, Source

log = logging.getLogger("stepwatch")

Row = tuple[int, str, str, float]
"""(time in ns since the epoch, device, metric, value); units are in the metric's name."""

TICK_SECONDS = 0.2
SHORTEST_INTERVAL = 0.05
BUDGET = 0.004
"""Share of a core that sampling twice a second may take; it grows in proportion with the rate that is asked for."""


class SystemSampler:
    """Calls ``submit`` with rows at an interval, and ``tick`` several times a second.

    It measures its own CPU time: on a machine where reading everything would take more than its budget, what is
    costly to read is read less often. What it takes is recorded as ``sampler_percent`` of the process.

    Args:
        interval: seconds between samples, at least 0.05; 0 samples nothing.
        submit: gets the rows of each sample.
        tick: other work for the same thread; its errors are its own business.
        sampling: False leaves the samples to another process of this node.
        volumes: directories whose volumes are watched for room.
        process: the process that is the job, with its descendants; this one by default.
    """

    def __init__(
        self,
        interval: float,
        submit: Callable[[list[Row]], None],
        tick: Callable[[], None],
        *,
        sampling: bool = True,
        volumes: Sequence[Path] = (),
        process: psutil.Process | None = None,
    ) -> None:
        if interval != 0 and interval < SHORTEST_INTERVAL:
            raise ValueError(
                f"system_interval is {interval}; expected seconds, at least {SHORTEST_INTERVAL}, or 0 for no samples"
            )
        self._interval = interval if sampling else 0.0
        self._submit = submit
        self._tick = tick
        self._volumes = volumes
        self._process = process
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stepwatch-sampler", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread is done."""
        self._ended.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        pace = Pace(open_sources(self._volumes, self._process), self._interval) if self._interval else None
        next_tick = next_sample = time.monotonic()
        while True:
            now = time.monotonic()
            if pace is not None and now >= next_sample:
                next_sample = max(next_sample + self._interval, now)
                rows = pace.read(now)
                stamp = time.time_ns()
                self._submit([(stamp, *row) for row in rows])
            if now >= next_tick:
                next_tick = now + TICK_SECONDS
                self._tick()
            wake = min(next_tick, next_sample) if pace is not None else next_tick
            if self._ended.wait(max(wake - time.monotonic(), 0.0)):
                return


def open_sources(volumes: Sequence[Path], process: psutil.Process | None = None) -> list[Source]:
    """Everything that this machine lets itself be asked; what it lacks is said once, at level INFO.

    Args:
        volumes: directories whose volumes are watched for room, beside that of the job's own and of shared memory.
        process: the process that is the job; this one by default.
    """
    pid = process.pid if process else os.getpid()
    makers: list[Callable[[], Source]] = [
        Processors,
        Cores,
        Memory,
        Disks,
        Network,
        Pressure,
        lambda: ControlGroup(membership=Path(f"/proc/{pid}/cgroup")),
        lambda: OneProcess(process),
        lambda: ProcessTree(process),
        lambda: Volumes([*volumes, Path(process.cwd() if process else Path.cwd()), Path("/dev/shm")]),
    ]
    sources: list[Source] = []
    for make in makers:
        try:
            sources.append(make())
        except (psutil.Error, OSError, RuntimeError, ValueError) as error:
            log.info("part of the machine is not sampled: %s", error)
    missing: list[str] = []
    for devices in (NvidiaDevices, AmdDevices):
        try:
            sources += devices(pid).sources()
        except RuntimeError as error:
            missing.append(str(error))
    if len(missing) == 2:
        log.info("no GPU is sampled: %s", "; ".join(missing))
    return sources


class Pace:
    """Reads sources when they are due, and stretches the periods of costly ones so that all stay in the budget.

    Args:
        sources: what is read.
        interval: seconds between samples.
    """

    def __init__(self, sources: Sequence[Source], interval: float) -> None:
        self._sources = list(sources)
        self._interval = interval
        self._budget = BUDGET * max(1.0, 0.5 / interval)
        self._costs = [0.0] * len(self._sources)
        self._due = [0.0] * len(self._sources)
        self._own = (0.0, 0.0)

    def read(self, now: float) -> list[Reading]:
        """Readings of the sources that are due at ``now``, seconds of the monotonic clock."""
        rows: list[Reading] = []
        periods = self.periods()
        for index, source in enumerate(self._sources):
            if now < self._due[index] - self._interval / 2:
                continue
            self._due[index] = now + periods[index]
            began = time.thread_time()
            try:
                rows.extend(source.read(now))
            except Exception as error:  # whatever it is, the others go on
                log.debug("%s cannot be read: %s", type(source).__name__, error)
            cost = time.thread_time() - began
            known = self._costs[index]
            self._costs[index] = 0.7 * known + 0.3 * cost if known else cost
        rows.extend(self._cost_of_sampling(now))
        return rows

    def periods(self) -> list[float]:
        """Seconds between readings of each source.

        Sources that take less than an equal part of the budget are read as often as they want; the others share
        what is left.
        """
        wanted = [max(source.period, self._interval) for source in self._sources]
        shares = [cost / period for cost, period in zip(self._costs, wanted, strict=True)]
        left = self._budget
        periods = list(wanted)
        by_share = sorted(range(len(shares)), key=shares.__getitem__)
        for position, index in enumerate(by_share):
            granted = min(shares[index], left / (len(by_share) - position))
            left -= granted
            if granted < shares[index]:
                periods[index] = self._costs[index] / granted
        return periods

    def _cost_of_sampling(self, now: float) -> list[Reading]:
        since, spent = self._own
        if now - since < 10.0:
            return []
        total = time.thread_time()
        self._own = (now, total)
        return [("process", "sampler_percent", round(100 * (total - spent) / (now - since), 3))] if since else []
