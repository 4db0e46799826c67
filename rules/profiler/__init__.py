"""Rules about where the time and the machine go."""

from __future__ import annotations

from stepwatch.rules.profiler.allocation import Fragmentation, SmallBatch
from stepwatch.rules.profiler.communication import CommunicationBound
from stepwatch.rules.profiler.devices import ContainerThrottled, DeviceErrors, GpuOverheating, GpuStarved
from stepwatch.rules.profiler.issuing import HostBound
from stepwatch.rules.profiler.loading import DataLoadingBound
from stepwatch.rules.profiler.memory import DiskFilling, MemoryLeak, MemoryPressure
from stepwatch.rules.profiler.pace import Hang, SlowCheckpointing, StepTimeDrift
from stepwatch.rules.profiler.processors import CpuContention
from stepwatch.rules.profiler.ranks import StragglerRank
from stepwatch.rules.rule import Rule

PROFILER: tuple[type[Rule], ...] = (
    Hang,
    DeviceErrors,
    DataLoadingBound,
    StragglerRank,
    CommunicationBound,
    StepTimeDrift,
    MemoryLeak,
    MemoryPressure,
    DiskFilling,
    SlowCheckpointing,
    ContainerThrottled,
    CpuContention,
    Fragmentation,
    HostBound,
    GpuStarved,
    SmallBatch,
    GpuOverheating,
)
"""In the order in which they are reported: what stops a job first, then what slows it."""
