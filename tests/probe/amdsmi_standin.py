"""Stands in for AMD's library, of which it has the calls that are made here, in the shapes of amdsmi 7.0.2.

No AMD device was at hand: what a real driver answers is not tested.
"""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

amdsmi_wrapper = SimpleNamespace(AMDSMI_STATUS_NOT_SUPPORTED=2, AMDSMI_STATUS_NOT_YET_IMPLEMENTED=3)
asked: list[tuple[str, int]] = []
failing: dict[tuple[str, int], int] = {}
"""(call, device) -> the error that it ends with."""


class AmdSmiException(Exception):
    pass


class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code


class AmdSmiClkType(IntEnum):
    GFX = 1
    MEM = 4


class AmdSmiMemoryType(IntEnum):
    VRAM = 0


class AmdSmiTemperatureType(IntEnum):
    HOTSPOT = 1


class AmdSmiTemperatureMetric(IntEnum):
    CURRENT = 0


def _ask(call: str, device: int) -> None:
    asked.append((call, device))
    if (call, device) in failing:
        raise AmdSmiLibraryException(failing[call, device])


def amdsmi_init() -> None:
    _ask("init", -1)


def amdsmi_get_processor_handles() -> list[int]:
    return [0, 1]


def amdsmi_get_gpu_device_uuid(device: int) -> str:
    return f"{device}2ff74a0-0000-1000-80b9-0123456789ab"


def amdsmi_get_gpu_activity(device: int) -> dict[str, Any]:
    _ask("activity", device)
    return {"gfx_activity": 93, "umc_activity": 41 if device == 0 else "N/A", "mm_activity": "N/A"}


def amdsmi_get_gpu_memory_usage(device: int, kind: AmdSmiMemoryType) -> int:
    return (40 << 30) + 17


def amdsmi_get_gpu_memory_total(device: int, kind: AmdSmiMemoryType) -> int:
    return 192 << 30


def amdsmi_get_power_info(device: int) -> dict[str, Any]:
    _ask("power", device)
    return {"socket_power": 612, "current_socket_power": 612, "average_socket_power": "N/A", "power_limit": 750}


def amdsmi_get_temp_metric(device: int, kind: AmdSmiTemperatureType, metric: AmdSmiTemperatureMetric) -> int:
    return 71


def amdsmi_get_clock_info(device: int, kind: AmdSmiClkType) -> dict[str, Any]:
    return {"clk": 2100 if kind is AmdSmiClkType.GFX else 1300, "min_clk": 132, "max_clk": 2100}


def amdsmi_get_gpu_total_ecc_count(device: int) -> dict[str, int]:
    return {"correctable_count": 4, "uncorrectable_count": 1, "deferred_count": 0}


def amdsmi_get_gpu_process_list(device: int) -> list[dict[str, Any]]:
    used = {"gtt_mem": 0, "cpu_mem": 0, "vram_mem": 5 << 30}
    return [{"name": "python", "pid": 4711, "mem": 5 << 30, "memory_usage": used}]
