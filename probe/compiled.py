"""Statistics of CPU tensors in one pass over their memory, by the compiled code of ``_kernels.c``."""

from __future__ import annotations

import ctypes
import importlib.util
from array import array
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from stepwatch.probe.store.schema import STAT_COLUMNS

TYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""What the compiled code reads, by its own numbers for them."""


def _load() -> Callable[..., int] | None:
    spec = importlib.util.find_spec("stepwatch.probe._kernels")
    if spec is None or spec.origin is None:
        return None
    try:
        # The number goes up with every change of the signature: a stale build is not called.
        function = ctypes.CDLL(spec.origin).stepwatch_measure_1
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


def _torch_threads() -> int | None:
    """Address of ``GOMP_parallel`` of the OpenMP library that torch has loaded for all to see.

    The threads that torch computes with are awake and warm; others would compete with them.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError, TypeError):
        return None


_function = _load()
_parallel = _torch_threads()


def available() -> bool:
    """Whether the compiled code was built when Stepwatch was installed."""
    return _function is not None


def measure(tensors: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """All columns of contiguous CPU tensors of :data:`TYPES`; float64 [tensors, len(STAT_COLUMNS)].

    Raises:
        ValueError: a tensor has entries but no memory.
    """
    if _function is None:
        raise RuntimeError("the compiled statistics were not built")
    described = array("q")
    for tensor in tensors:
        address, numel = tensor.data_ptr(), tensor.numel()
        if not address and numel:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no memory; expected its entries")
        described.extend((address, numel, TYPES[tensor.dtype]))
    matrix = np.empty((len(tensors), len(STAT_COLUMNS)))
    if _function(len(tensors), described.buffer_info()[0], matrix.ctypes.data, _parallel) != 0:
        raise MemoryError(f"no memory for the statistics of {len(tensors)} tensors")
    return matrix
