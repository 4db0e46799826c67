"""What PyTorch's caching allocator of CUDA memory holds, read beside the training."""

from __future__ import annotations

import time

import torch

_SECONDS = 1.0

STATISTICS = {
    "allocated_bytes": "allocated_bytes.all.current",
    "peak_bytes": "allocated_bytes.all.peak",
    "reserved_bytes": "reserved_bytes.all.current",
    "fragmented_bytes": "inactive_split_bytes.all.current",
    "allocation_retries": "num_alloc_retries",
}
"""Columns of ``steps``, and torch's names for them: in tensors now and at most, taken from the device, free in between
blocks in use and so of no use to others, and how often the device had no more and the allocator gave back all that it
could, while everything waited."""


class AllocatorStatistics:
    """The latest statistics of this process, over all of its devices."""

    def __init__(self) -> None:
        self.latest: dict[str, int] = {}
        """By column; empty before the first reading and where there is no CUDA device."""
        self._due = 0.0

    def poll(self) -> None:
        """Read them once a second, in some thread that is not the training's. CUDA is not initialised for it."""
        now = time.monotonic()
        if now < self._due or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return
        self._due = now + _SECONDS
        every = [torch.cuda.memory_stats(device) for device in range(torch.cuda.device_count())]
        self.latest = {column: sum(int(each.get(name, 0)) for each in every) for column, name in STATISTICS.items()}
