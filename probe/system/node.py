"""The node: processors, memory, disks, volumes, network, pressure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from stepwatch.probe.system.source import Rates, Reading, Source

_PRESSURE = re.compile(r"^(some|full) .*total=(\d+)", re.MULTILINE)
_WHOLE_DISKS = Path("/sys/block")
_NO_DISK = re.compile(r"^(loop|ram|zram|dm-|md|fd|sr)")


class Processors(Source):
    """Use of all cores together, of the busiest one, time waiting for storage, and the load."""

    def __init__(self) -> None:
        self._last: list[Any] = psutil.cpu_times(percpu=True)

    def read(self, now: float) -> Iterator[Reading]:
        """See the base class."""
        times = psutil.cpu_times(percpu=True)
        before, self._last = self._last, times
        busy, waiting = [], []
        for old, new in zip(before, times, strict=False):
            # Guests' time is part of the user's time.
            total = sum(new[:8]) - sum(old[:8])
            if total <= 0:
                continue
            wait = getattr(new, "iowait", 0.0) - getattr(old, "iowait", 0.0)
            busy.append(100 * (1 - (new.idle - old.idle + wait) / total))
            waiting.append(100 * wait / total)
        if busy:
            yield "node", "cpu_percent", _percent(sum(busy) / len(busy))
            yield "node", "cpu_busiest_core_percent", _percent(max(busy))
            yield "node", "iowait_percent", _percent(sum(waiting) / len(waiting))
            yield "node", "iowait_worst_core_percent", _percent(max(waiting))
        yield "node", "load_1min", round(psutil.getloadavg()[0], 2)


class Cores(Source):
    """Use of each core."""

    period = 5.0

    def __init__(self) -> None:
        psutil.cpu_percent(percpu=True)

    def read(self, now: float) -> Iterator[Reading]:
        """See the base class."""
        for number, percent in enumerate(psutil.cpu_percent(percpu=True)):
            yield f"core:{number}", "cpu_percent", percent


class Memory(Source):
    """Memory and swap."""

    def __init__(self) -> None:
        self._rates = Rates()

    def read(self, now: float) -> Iterator[Reading]:
        """See the base class."""
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        yield "node", "memory_percent", memory.percent
        yield "node", "memory_used_bytes", float(memory.total - memory.available)
        yield "node", "memory_total_bytes", float(memory.total)
        yield "node", "swap_percent", swap.percent
        for metric, total in (("swap_in_bytes_per_s", swap.sin), ("swap_out_bytes_per_s", swap.sout)):
            rate = self._rates.of(metric, total, now)
            if rate is not None:
                yield "node", metric, round(rate)


class Disks(Source):
    """Traffic of all disks together, and of each: how busy it is, and how long an operation takes."""

    period = 1.0

    def __init__(self) -> None:
        self._rates = Rates()
        names = os.listdir(_WHOLE_DISKS) if _WHOLE_DISKS.is_dir() else []
        self._whole = {name for name in names if not _NO_DISK.match(name)}

    def read(self, now: float) -> Iterator[Reading]:
        """See the base class."""
        counters = psutil.disk_io_counters(perdisk=True)
        disks = {name: io for name, io in counters.items() if not self._whole or name in self._whole}
        if not disks:
            return
        totals = {"disk_read_bytes_per_s": 0.0, "disk_write_bytes_per_s": 0.0}
        known = False
        for name, io in disks.items():
            rates = {
                "disk_read_bytes_per_s": self._rates.of(f"{name} read", io.read_bytes, now),
                "disk_write_bytes_per_s": self._rates.of(f"{name} write", io.write_bytes, now),
            }
            operations = self._rates.of(f"{name} operations", io.read_count + io.write_count, now)
            waited = self._rates.of(f"{name} time", io.read_time + io.write_time, now)
            busy = self._rates.of(f"{name} busy", getattr(io, "busy_time", 0), now)
            for metric, rate in rates.items():
                if rate is not None:
                    known = True
                    totals[metric] += rate
            if busy is not None:
                yield f"disk:{name}", "busy_percent", _percent(busy / 10)  # milliseconds per second
            if operations and waited is not None:
                yield f"disk:{name}", "latency_ms", round(waited / operations, 3)
        if known:
            for metric, total in totals.items():
                yield "node", metric, round(total)


class Volumes(Source):
    """Room on the volumes of some directories.

    Args:
        directories: where the job reads and writes; those of one volume are reported once, under the first.
    """

    period = 1.0

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories: dict[int, Path] = {}
        for directory in directories:
            try:
                self._directories.setdefault(os.stat(directory).st_dev, directory)
            except OSError:
                continue

    def read(self, now: float) -> Iterator[Reading]:
        """See the base class."""
        for directory in self._directories.values():
            volume = os.statvfs(directory)
            if volume.f_blocks:
                yield f"volume:{directory}", "free_bytes", float(volume.f_bavail * volume.f_frsize)
                yield f"volume:{directory}", "used_percent", _percent(100 * (1 - volume.f_bavail / volume.f_blocks))


class Network(Source):
    """Traffic of all interfaces together and of each that has any, the loopback left out."""

    period = 1.0

    def __init__(self) -> None:
        self._rates = Rates()

    def read(self, now: float) -> Iterator[Reading]:
        """See the base class."""
        totals = {"receive_bytes_per_s": 0.0, "send_bytes_per_s": 0.0}
        known = False
        for name, io in psutil.net_io_counters(pernic=True).items():
            if name == "lo" or not io.bytes_recv + io.bytes_sent:
                continue
            counters = {"receive_bytes_per_s": io.bytes_recv, "send_bytes_per_s": io.bytes_sent}
            counters["errors_per_s"] = io.errin + io.errout + io.dropin + io.dropout
            for metric, counter in counters.items():
                rate = self._rates.of(f"{name} {metric}", counter, now)
                if rate is None:
                    continue
                known = True
                yield f"network:{name}", metric, round(rate)
                if metric in totals:
                    totals[metric] += rate
        if known:
            for metric, total in totals.items():
                yield "node", f"network_{metric}", round(total)


class Pressure(Source):
    """Share of time in which work stood still for lack of processors, memory or storage (Linux's PSI).

    Args:
        folder: where the kernel tells it.
    """

    period = 1.0

    def __init__(self, folder: Path = Path("/proc/pressure")) -> None:
        self._files = {name: folder / name for name in ("cpu", "memory", "io") if (folder / name).exists()}
        self._rates = Rates()

    def read(self, now: float) -> Iterator[Reading]:
        """See the base class."""
        for resource, file in self._files.items():
            for kind, microseconds in _PRESSURE.findall(file.read_text()):
                metric = f"pressure_{resource}_{kind}_percent"
                rate = self._rates.of(metric, int(microseconds), now)
                # "full" has no meaning for the processors of a whole node
                if rate is not None and metric != "pressure_cpu_full_percent":
                    yield "node", metric, _percent(rate / 1e4)


def _percent(value: float) -> float:
    return round(min(max(value, 0.0), 100.0), 2)
