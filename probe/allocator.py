"""What PyTorch's caching allocator of CUDA memory holds when a step has ended."""

from __future__ import annotations

import time

import torch

from stepwatch.probe.torch_state import uses_cuda

_SECONDS = 1.0

STATISTICS = {
    "allocated_bytes": ("allocated_bytes", "current"),
    "peak_bytes": ("allocated_bytes", "peak"),
    "reserved_bytes": ("reserved_bytes", "current"),
    "fragmented_bytes": ("inactive_split_bytes", "current"),
}
"""Columns of ``steps``, and torch's names for them: in tensors now and at most, taken from the device, free in between
blocks in use and so of no use to others. Beside them are ``allocation_retries``, how often the device had no more and
the allocator gave back all that it could, while everything waited, and ``device_bytes``, the size of the memory of
those devices on which something is reserved."""


class AllocatorStatistics:
    """The statistics of this process, over all of its devices, at the end of a step in every second.

    Always at that point, for in the course of a step the memory rises and falls: read at any other time, a pace of
    reading near that of the steps would show a growth that is none. A reading takes some ten microseconds per device
    and does not touch the device.
    """

    def __init__(self) -> None:
        self._latest: dict[str, int] = {}
        self._due = 0.0

    def at_step_end(self) -> dict[str, int]:
        """The latest statistics by column; none where there is no CUDA device. CUDA is not initialised for it."""
        if uses_cuda() and (now := time.monotonic()) >= self._due:
            self._due = now + _SECONDS
            self._latest = _read()
        return self._latest


def _read() -> dict[str, int]:
    read = dict.fromkeys((*STATISTICS, "allocation_retries", "device_bytes"), 0)
    for device in range(torch.cuda.device_count()):
        known = torch.cuda.memory_stats_as_nested_dict(device)
        if not known or not known["reserved_bytes"]["all"]["current"]:
            continue
        for column, (name, moment) in STATISTICS.items():
            read[column] += known[name]["all"][moment]
        read["allocation_retries"] += known["num_alloc_retries"]
        read["device_bytes"] += torch.cuda.get_device_properties(device).total_memory
    return read
