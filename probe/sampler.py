"""Samples the use of the node, of this process and of its GPUs, in a thread beside the training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

log = logging.getLogger("stepwatch")

Row = tuple[int, str, str, float]
"""(time in ns since the epoch, device, metric, value); units are in the metric's name."""

TICK_SECONDS = 0.2


class SystemSampler:
    """Calls ``submit`` with rows at an interval, and ``tick`` several times a second.

    Args:
        interval: seconds between samples; 0 samples nothing.
        submit: gets the rows of each sample.
        tick: other work for the same thread; its errors are its own business.
        sampling: False leaves the samples to another process of this node.
    """

    def __init__(
        self, interval: float, submit: Callable[[list[Row]], None], tick: Callable[[], None], *, sampling: bool = True
    ) -> None:
        if interval < 0:
            raise ValueError(f"system_interval is {interval}; expected seconds, 0 or more")
        self._interval = interval if sampling else 0.0
        self._submit = submit
        self._tick = tick
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
        sources: list[Callable[[], Iterator[tuple[str, str, float]]]] = []
        if self._interval:
            sources = [_Node().sample, _Process().sample, _Gpus().sample]
        next_sample = time.monotonic()
        while not self._ended.wait(min(TICK_SECONDS, self._interval or TICK_SECONDS)):
            self._tick()
            if sources and time.monotonic() >= next_sample:
                next_sample = time.monotonic() + self._interval
                now = time.time_ns()
                self._submit([(now, *row) for source in sources for row in _read(source)])


def _read(source: Callable[[], Iterator[tuple[str, str, float]]]) -> list[tuple[str, str, float]]:
    rows: list[tuple[str, str, float]] = []
    try:
        rows.extend(source())
    except (psutil.Error, OSError, RuntimeError) as error:
        log.debug("a system metric cannot be read: %s", error)
    return rows


class _Node:
    def __init__(self) -> None:
        psutil.cpu_percent()
        self._io = _Rates()

    def sample(self) -> Iterator[tuple[str, str, float]]:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        yield "node", "cpu_percent", psutil.cpu_percent()
        yield "node", "load_1min", psutil.getloadavg()[0]
        yield "node", "memory_percent", memory.percent
        yield "node", "memory_used_bytes", float(memory.used)
        yield "node", "swap_percent", swap.percent
        disk, net = psutil.disk_io_counters(), psutil.net_io_counters()
        if disk is not None:
            yield from self._io.of("disk_read_bytes_per_s", disk.read_bytes)
            yield from self._io.of("disk_write_bytes_per_s", disk.write_bytes)
        if net is not None:
            yield from self._io.of("network_receive_bytes_per_s", net.bytes_recv)
            yield from self._io.of("network_send_bytes_per_s", net.bytes_sent)


class _Process:
    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()

    def sample(self) -> Iterator[tuple[str, str, float]]:
        with self._process.oneshot():
            yield "process", "cpu_percent", self._process.cpu_percent()
            yield "process", "memory_rss_bytes", float(self._process.memory_info().rss)
            yield "process", "threads", float(self._process.num_threads())


class _Rates:
    """Differences of ever-growing counters, per second."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int]] = {}

    def of(self, metric: str, total: int) -> Iterator[tuple[str, str, float]]:
        now = time.monotonic()
        before = self._last.get(metric)
        self._last[metric] = (now, total)
        if before is not None and now > before[0]:
            yield "node", metric, (total - before[1]) / (now - before[0])


class _Gpus:
    """NVIDIA devices by UUID; a field that a device lacks costs only itself."""

    def __init__(self) -> None:
        self._handles: list[tuple[str, Any]] = []
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                self._handles.append((str(pynvml.nvmlDeviceGetUUID(handle)), handle))
        except Exception as error:  # no driver, no device: nothing to sample
            log.debug("no NVIDIA device is sampled: %s", error)

    def sample(self) -> Iterator[tuple[str, str, float]]:
        for uuid, handle in self._handles:
            for metric, read in self._fields(handle):
                try:
                    yield uuid, metric, float(read())
                except self._nvml.NVMLError as error:
                    log.debug("%s of %s cannot be read: %s", metric, uuid, error)

    def _fields(self, handle: Any) -> list[tuple[str, Callable[[], float]]]:
        nvml = self._nvml
        return [
            ("utilization_percent", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            ("memory_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            ("memory_total_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
            ("power_watts", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            (
                "temperature_celsius",
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            ),
        ]
