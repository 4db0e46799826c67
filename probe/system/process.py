"""The job's processes on this node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from stepwatch.probe.system.source import Rates, Reading, Source

_TREE_SECONDS = 5.0


class OneProcess(Source):
    """The process that trains: device ``process``.

    ``cpu_wait_percent`` is the share of the time in which its first thread, which trains, was ready to run and had no
    processor.

    Args:
        process: this one by default.
    """

    def __init__(self, process: psutil.Process | None = None) -> None:
        self._process = process or psutil.Process()
        self._process.cpu_percent()
        self._rates = Rates()

    def read(self, now: float) -> Iterator[Reading]:
        """See the base class."""
        waited = _waited_percent(self._process.pid, self._rates, now)
        if waited is not None:
            yield "process", "cpu_wait_percent", waited
        with self._process.oneshot():
            yield "process", "cpu_percent", self._process.cpu_percent()
            yield "process", "memory_rss_bytes", float(self._process.memory_info().rss)
            yield "process", "threads", float(self._process.num_threads())
            yield "process", "file_descriptors", float(self._process.num_fds())


class ProcessTree(Source):
    """All processes of the job on this node: device ``job``.

    They are this one and its descendants (data loader workers), and where a launcher has started several ranks
    on the node the launcher and all of its. Memory is the sum of resident sets: what processes share counts
    in each. ``cpu_wait_percent`` is that of the process that waited most for a processor.

    Args:
        root: another process, which is then the job with its descendants.
    """

    def __init__(self, root: psutil.Process | None = None) -> None:
        own = root or psutil.Process()
        several = root is None and int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1) > 1
        self._root = (own.parent() or own) if several else own
        self._known: dict[int, psutil.Process] = {}
        self._listed = -_TREE_SECONDS
        self._rates = Rates()

    def read(self, now: float) -> Iterator[Reading]:
        """See the base class."""
        if now - self._listed >= _TREE_SECONDS:
            self._list()
            self._listed = now
        cpu = resident = 0.0
        threads = processes = 0
        read_rate = write_rate = 0.0
        waits = [waited for pid in self._known if (waited := _waited_percent(pid, self._rates, now)) is not None]
        for pid, process in list(self._known.items()):
            try:
                with process.oneshot():
                    cpu += process.cpu_percent()
                    resident += process.memory_info().rss
                    threads += process.num_threads()
                    io = process.io_counters()
                read_rate += self._rates.of(f"{pid} read", io.read_chars, now) or 0.0
                write_rate += self._rates.of(f"{pid} write", io.write_chars, now) or 0.0
                processes += 1
            except psutil.AccessDenied:
                processes += 1
            except psutil.Error:
                del self._known[pid]
        yield "job", "processes", float(processes)
        yield "job", "cpu_percent", round(cpu, 1)
        yield "job", "memory_rss_bytes", resident
        yield "job", "threads", float(threads)
        yield "job", "read_bytes_per_s", round(read_rate)
        yield "job", "write_bytes_per_s", round(write_rate)
        if waits:
            yield "job", "cpu_wait_percent", max(waits)

    def _list(self) -> None:
        found = {process.pid: process for process in (self._root, *self._root.children(recursive=True))}
        # Processes that were known keep their objects: those remember when their CPU time was last read.
        self._known = {pid: self._known.get(pid) or process for pid, process in found.items()}


def _waited_percent(pid: int, rates: Rates, now: float) -> float | None:
    """Share of the time that a process's first thread was ready to run and was not run, as Linux counts it."""
    try:
        nanoseconds = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    rate = rates.of(f"{pid} waited", nanoseconds, now)
    return None if rate is None else round(min(rate / 1e7, 100.0), 1)
