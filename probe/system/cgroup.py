"""Limits of the container that the job runs in, and how hard it meets them (cgroup versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stepwatch.probe.system.source import Rates, Reading, Source

_UNLIMITED = 1 << 60  # version 1 spells "no limit" as the largest number of whole pages


class ControlGroup(Source):
    """Device ``cgroup``: memory in use and its limit, cores allowed, and the share of time it was throttled.

    A limit is the tightest one of the group and those that it is in. Memory in use leaves out file pages
    that the kernel would give up first.

    Args:
        root: where the hierarchies are mounted.
        membership: the kernel's list of the groups that this process is in.
    """

    period = 1.0

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> None:
        self._rates = Rates()
        self._memory: list[Path] = []
        self._cpu: list[Path] = []
        self._unified = (root / "cgroup.controllers").exists()
        try:
            lines = membership.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if self._unified and not controllers:
                self._memory = self._cpu = _ancestry(root, path)
            elif not self._unified and "memory" in controllers.split(","):
                self._memory = _ancestry(root / "memory", path)
            elif not self._unified and "cpu" in controllers.split(","):
                self._cpu = _ancestry(root / "cpu", path)

    def read(self, now: float) -> Iterator[Reading]:
        """See the base class."""
        if self._memory:
            yield from self._read_memory()
        if self._cpu:
            yield from self._read_cpu(now)

    def _read_memory(self) -> Iterator[Reading]:
        limit_name, used_name, cache_name = (
            ("memory.max", "memory.current", "inactive_file")
            if self._unified
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        limits = [_number(folder / limit_name) for folder in self._memory]
        limit = min((n for n in limits if n is not None and n < _UNLIMITED), default=None)
        used = _number(self._memory[0] / used_name)
        if used is not None:
            idle = _table(self._memory[0] / "memory.stat").get(cache_name, 0)
            yield "cgroup", "memory_used_bytes", float(max(used - idle, 0))
        if limit is not None:
            yield "cgroup", "memory_limit_bytes", float(limit)
        kills = _table(self._memory[0] / ("memory.events" if self._unified else "memory.oom_control")).get("oom_kill")
        if kills is not None:
            yield "cgroup", "oom_kills", float(kills)

    def _read_cpu(self, now: float) -> Iterator[Reading]:
        cores = min((n for folder in self._cpu if (n := self._cores(folder)) is not None), default=None)
        if cores is None:
            return
        yield "cgroup", "cpu_limit_cores", cores
        for folder in self._cpu:
            if self._cores(folder) == cores:
                counters = _table(folder / "cpu.stat")
                periods = self._rates.of("periods", counters.get("nr_periods", 0), now)
                throttled = self._rates.of("throttled", counters.get("nr_throttled", 0), now)
                if periods is not None and throttled is not None:
                    share = 100 * throttled / periods if periods else 0.0
                    yield "cgroup", "throttled_percent", round(min(share, 100.0), 2)
                return

    def _cores(self, folder: Path) -> float | None:
        if self._unified:
            words = _words(folder / "cpu.max")
            return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        return quota / period if quota is not None and quota > 0 and period else None


def _ancestry(root: Path, path: str) -> list[Path]:
    """The group's folder and those above it, below ``root``; inside a container the group may be the root itself."""
    folder = root / path.strip("/")
    if not folder.is_dir():
        folder = root
    found = [folder]
    while found[-1] != root:
        found.append(found[-1].parent)
    return [each for each in found if each.is_dir()]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _number(file: Path) -> int | None:
    words = _words(file)
    return int(words[0]) if words and words[0].lstrip("-").isdigit() else None


def _table(file: Path) -> dict[str, int]:
    words = _words(file)
    return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=False) if value.isdigit()}
