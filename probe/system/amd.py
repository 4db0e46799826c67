"""AMD devices, through AMD SMI.

What their driver says of throttling does not tell heat from power on all of them, and is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stepwatch.probe.system.fields import DeviceFields, Field
from stepwatch.probe.system.source import Source

DRIVER = Path("/dev/kfd")
"""What the driver for computing on AMD's devices makes. The library is not loaded without it: it would print."""

_MIB = 1 << 20


class AmdDevices:
    """The driver and its devices, each named by its UUID.

    Args:
        pid: the process whose own memory is told apart; this one by default.

    Raises:
        RuntimeError: there is no driver, no library or no device; says which.
    """

    def __init__(self, pid: int | None = None) -> None:
        self.pid = pid or os.getpid()
        if not DRIVER.exists():
            raise RuntimeError("AMD SMI: no driver")
        try:
            import amdsmi
        except (ImportError, OSError, KeyError) as error:  # KeyError: the package is there, its library is not
            raise RuntimeError(f"AMD SMI: the driver is there, amdsmi cannot be loaded: {error}") from None
        self.smi: Any = amdsmi
        try:
            amdsmi.amdsmi_init()
            handles = amdsmi.amdsmi_get_processor_handles()
            self.devices = {f"GPU-{amdsmi.amdsmi_get_gpu_device_uuid(handle)}": handle for handle in handles}
        except amdsmi.AmdSmiException as error:
            raise RuntimeError(f"AMD SMI: {' '.join(str(error).split())}") from None
        if not self.devices:
            raise RuntimeError("AMD SMI: the driver knows no device")

    def sources(self) -> list[Source]:
        """What is read of them at every sample, and what seldom."""
        return [_Use(self), _Health(self)]


class _Fields(DeviceFields):
    """Fields of AMD devices; what one lacks is "N/A", or an error of its own."""

    def __init__(self, devices: AmdDevices) -> None:
        self.smi = devices.smi
        self.pid = devices.pid
        self.failure = (devices.smi.AmdSmiException, ValueError)
        super().__init__(
            [(uuid, *field) for uuid, handle in devices.devices.items() for field in self.of_device(handle)]
        )

    def lacks(self, error: Exception) -> bool:
        """See the base class."""
        codes = {
            getattr(self.smi.amdsmi_wrapper, f"AMDSMI_STATUS_{why}") for why in ("NOT_SUPPORTED", "NOT_YET_IMPLEMENTED")
        }
        return isinstance(error, ValueError) or getattr(error, "err_code", None) in codes

    def clock(self, handle: Any, kind: str) -> float:
        """MHz."""
        kinds = self.smi.AmdSmiClkType
        return float(self.smi.amdsmi_get_clock_info(handle, getattr(kinds, kind))["clk"])


class _Use(_Fields):
    """What changes from one sample to the next."""

    def of_device(self, handle: Any) -> Iterator[Field]:
        """See the base class."""
        smi = self.smi
        memory = smi.AmdSmiMemoryType.VRAM
        yield "utilization_percent", lambda: smi.amdsmi_get_gpu_activity(handle)["gfx_activity"]
        yield "memory_used_bytes", lambda: smi.amdsmi_get_gpu_memory_usage(handle, memory) // _MIB * _MIB
        yield "power_watts", lambda: smi.amdsmi_get_power_info(handle)["socket_power"]
        yield "clock_sm_mhz", partial(self.clock, handle, "GFX")


class _Health(_Fields):
    """What changes slowly, or should not change at all."""

    period = 5.0

    def of_device(self, handle: Any) -> Iterator[Field]:
        """See the base class."""
        smi = self.smi
        memory = smi.AmdSmiMemoryType.VRAM
        hottest = (smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureMetric.CURRENT)
        yield "memory_total_bytes", partial(smi.amdsmi_get_gpu_memory_total, handle, memory)
        yield "memory_utilization_percent", lambda: smi.amdsmi_get_gpu_activity(handle)["umc_activity"]
        yield "temperature_celsius", partial(smi.amdsmi_get_temp_metric, handle, *hottest)
        yield "power_limit_watts", lambda: smi.amdsmi_get_power_info(handle)["power_limit"]
        yield "clock_memory_mhz", partial(self.clock, handle, "MEM")
        yield "processes", lambda: len(smi.amdsmi_get_gpu_process_list(handle))
        yield "own_memory_bytes", lambda: self._own_memory(smi.amdsmi_get_gpu_process_list(handle))
        for metric, count in (("ecc_corrected", "correctable"), ("ecc_uncorrected", "uncorrectable")):
            yield metric, partial(self._errors, handle, f"{count}_count")

    def _errors(self, handle: Any, count: str) -> float:
        return float(self.smi.amdsmi_get_gpu_total_ecc_count(handle)[count])

    def _own_memory(self, processes: list[dict[str, Any]]) -> float:
        """Bytes that the process holds on the device; 0 where the driver knows other process numbers (containers)."""
        return float(sum(each["memory_usage"]["vram_mem"] for each in processes if each["pid"] == self.pid))
