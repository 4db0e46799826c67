"""NVIDIA devices, through NVML."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from stepwatch.probe.system.fields import DeviceFields, Field
from stepwatch.probe.system.source import Reading, Source

log = logging.getLogger("stepwatch")

_THROTTLE = {
    "throttled_thermal": ("SwThermalSlowdown", "HwThermalSlowdown"),
    "throttled_power": ("SwPowerCap", "HwPowerBrakeSlowdown"),
}
_MIB = 1 << 20


class NvidiaDevices:
    """The driver and its devices, each named by its UUID.

    MIG instances are devices of their own, with a UUID of their own; of them the driver tells memory only.

    Args:
        pid: the process whose own memory is told apart; this one by default.

    Raises:
        RuntimeError: there is no driver, or no device; says why.
    """

    def __init__(self, pid: int | None = None) -> None:
        import pynvml

        self.pid = pid or os.getpid()

        self.nvml: Any = pynvml
        self.failure: type[Exception] = pynvml.NVMLError
        try:
            pynvml.nvmlInit()
            physical = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            raise RuntimeError(f"NVML: {error}") from None
        if not physical:
            raise RuntimeError("NVML: the driver knows no device")
        self.physical = {str(pynvml.nvmlDeviceGetUUID(handle)): handle for handle in physical}
        self.instances = {str(pynvml.nvmlDeviceGetUUID(mig)): mig for each in physical for mig in self._instances(each)}

    def _instances(self, handle: Any) -> Iterator[Any]:
        nvml = self.nvml
        try:
            enabled, _ = nvml.nvmlDeviceGetMigMode(handle)
            count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if enabled else 0
        except nvml.NVMLError:
            return
        for index in range(count):
            try:
                yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            except nvml.NVMLError:
                continue  # a slot without an instance

    def sources(self) -> list[Source]:
        """What is read of them at every sample, and what seldom."""
        return [_Use(self), _Health(self), _Traffic(self)]


class _Fields(DeviceFields):
    """Fields of NVIDIA devices, and of their instances."""

    def __init__(self, devices: NvidiaDevices) -> None:
        self.nvml = devices.nvml
        self.failure = devices.failure
        self.lacking = {getattr(self.nvml, f"NVML_ERROR_{why}") for why in ("NOT_SUPPORTED", "FUNCTION_NOT_FOUND")}
        super().__init__(
            [
                *((uuid, *field) for uuid, handle in devices.physical.items() for field in self.of_device(handle)),
                *((uuid, *field) for uuid, handle in devices.instances.items() for field in self.of_instance(handle)),
            ]
        )

    def lacks(self, error: Exception) -> bool:
        """See the base class."""
        return getattr(error, "value", None) in self.lacking

    def of_instance(self, handle: Any) -> Iterator[Field]:
        """Metrics of a MIG instance and how each is read."""
        return iter(())


class _Use(_Fields):
    """What changes from one sample to the next."""

    def of_device(self, handle: Any) -> Iterator[Field]:
        """See the base class."""
        nvml = self.nvml
        yield "utilization_percent", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu
        yield "memory_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used // _MIB * _MIB
        yield "power_watts", lambda: round(nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        yield "clock_sm_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
        for metric, names in _THROTTLE.items():
            mask = sum(getattr(nvml, f"nvmlClocksThrottleReason{name}") for name in names)
            yield metric, partial(self._throttled, handle, mask)

    def of_instance(self, handle: Any) -> Iterator[Field]:
        """See the base class."""
        nvml = self.nvml
        yield "memory_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used // _MIB * _MIB

    def _throttled(self, handle: Any, mask: int) -> bool:
        return bool(self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) & mask)


class _Health(_Fields):
    """What changes slowly, or should not change at all."""

    period = 5.0

    def __init__(self, devices: NvidiaDevices) -> None:
        self._pid = devices.pid
        super().__init__(devices)
        self._uuids = {_address(handle): uuid for uuid, handle in devices.physical.items()}
        self._events: Any = None
        try:
            self._events = self.nvml.nvmlEventSetCreate()
            for handle in devices.physical.values():
                self.nvml.nvmlDeviceRegisterEvents(handle, self.nvml.nvmlEventTypeXidCriticalError, self._events)
        except self.failure as error:
            self._events = None
            log.debug("XID errors cannot be listened for: %s", error)

    def of_device(self, handle: Any) -> Iterator[Field]:
        """See the base class."""
        nvml = self.nvml
        yield "memory_total_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total
        yield "memory_utilization_percent", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).memory
        yield "temperature_celsius", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
        yield "power_limit_watts", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
        yield "clock_memory_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)
        yield "processes", lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        yield "own_memory_bytes", lambda: _own_memory(self._pid, nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        for name, kind in (("corrected", "CORRECTED"), ("uncorrected", "UNCORRECTED")):
            which = (getattr(nvml, f"NVML_MEMORY_ERROR_TYPE_{kind}"), nvml.NVML_VOLATILE_ECC)
            yield f"ecc_{name}", partial(nvml.nvmlDeviceGetTotalEccErrors, handle, *which)
        yield "remapped_rows_pending", lambda: nvml.nvmlDeviceGetRemappedRows(handle)[2]

    def of_instance(self, handle: Any) -> Iterator[Field]:
        """See the base class."""
        nvml = self.nvml
        yield "memory_total_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total

    def read(self, now: float) -> Iterator[Reading]:
        """Also errors that the driver has reported since the last time, as ``xid`` with the error's number."""
        yield from super().read(now)
        while self._events is not None:
            try:
                event = self.nvml.nvmlEventSetWait_v2(self._events, 0)
            except self.failure:  # none is waiting
                return
            uuid = self._uuids.get(_address(event.device))
            if uuid is not None:
                yield uuid, "xid", float(event.eventData)


class _Traffic(_Fields):
    """PCIe, which the driver measures over 20 ms while the caller waits, and NVLink."""

    period = 10.0

    def of_device(self, handle: Any) -> Iterator[Field]:
        """See the base class."""
        nvml = self.nvml
        for name, kind in (("receive", "RX"), ("send", "TX")):
            counter = getattr(nvml, f"NVML_PCIE_UTIL_{kind}_BYTES")
            yield f"pcie_{name}_bytes_per_s", partial(self._pcie, handle, counter)
            link = getattr(nvml, f"NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_{kind}")
            yield f"nvlink_{name}_bytes_total", partial(self._all_links, handle, link)

    def _pcie(self, handle: Any, counter: int) -> float:
        """Bytes per second; the driver counts KB of 1024."""
        return float(self.nvml.nvmlDeviceGetPcieThroughput(handle, counter)) * 1024

    def _all_links(self, handle: Any, field: int) -> float:
        """Bytes over all links of the device; the driver counts KiB."""
        every_link = 0xFFFFFFFF
        value = self.nvml.nvmlDeviceGetFieldValues(handle, [(field, every_link)])[0]
        if value.nvmlReturn != self.nvml.NVML_SUCCESS:
            raise self.nvml.NVMLError(value.nvmlReturn)
        return float(value.value.ullVal) * 1024


def _own_memory(pid: int, processes: list[Any]) -> float:
    """Bytes that the process holds on the device; 0 where the driver knows other process numbers (containers)."""
    return float(sum(each.usedGpuMemory or 0 for each in processes if each.pid == pid))


def _address(handle: Any) -> int:
    import ctypes

    return ctypes.cast(handle, ctypes.c_void_p).value or 0
