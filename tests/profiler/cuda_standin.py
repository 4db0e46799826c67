"""What torch tells of the memory of CUDA devices, where there are none: two of 80 GiB, and one that nobody uses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from stepwatch.probe import torch_state

GIB = 1 << 30


def statistics(device: int) -> dict[str, Any]:
    if device == 2:
        return {"reserved_bytes": {"all": {"current": 0}}}
    return {
        "allocated_bytes": {"all": {"current": 5, "peak": 7}},
        "reserved_bytes": {"all": {"current": 9}},
        "inactive_split_bytes": {"all": {"current": 2}},
        "num_alloc_retries": device,
    }


FUNCTIONS: dict[str, Any] = {
    "is_initialized": lambda: True,
    "is_current_stream_capturing": lambda: False,
    "device_count": lambda: 3,
    "memory_stats_as_nested_dict": statistics,
    "get_device_properties": lambda device: SimpleNamespace(total_memory=80 * GIB),
}


def install(put: Callable[[object, str, Any], None] = setattr) -> None:
    """For the rest of this process, or as long as what puts them there says."""
    put(torch_state, "_HAS_CUDA", True)
    for name, function in FUNCTIONS.items():
        put(torch.cuda, name, function)
