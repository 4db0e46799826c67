"""Statistics of CPU tensors in one pass over their memory, by the compiled code of ``_kernels.c``."""

from __future__ import annotations

import ctypes
import importlib.util
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stepwatch.probe.store.schema import STAT_COLUMNS

TYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""What the compiled code reads, by its own numbers for them."""

PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))
"""Types of tensors that are nothing but their memory."""

_SHORT = 65536
"""Entries that are read so soon that letting another Python thread in would take longer."""

_STRIDED = torch.strided
_is_functorch_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class _Library:
    """Functions of ``_kernels.c``. The numbers in their names go up with every change of a signature, so that
    a stale build is not called."""

    def __init__(self, path: str) -> None:
        releasing, holding = ctypes.CDLL(path), ctypes.PyDLL(path)
        self.measure = _declare(releasing.stepwatch_measure_2, "qppp")
        self.measure_short = _declare(holding.stepwatch_measure_2, "qppp")
        self.silent_units = _declare(releasing.stepwatch_silent_units_1, "qqqqqppp")
        self.silent_units_short = _declare(holding.stepwatch_silent_units_1, "qqqqqppp")
        self.class_counts = _declare(releasing.stepwatch_class_counts_1, "qqqqqpp")
        self.class_counts_short = _declare(holding.stepwatch_class_counts_1, "qqqqqpp")


def _declare(function: Any, arguments: str) -> Any:
    function.argtypes = [ctypes.c_int64 if letter == "q" else ctypes.c_void_p for letter in arguments]
    function.restype = ctypes.c_int
    return function


def _load() -> _Library | None:
    spec = importlib.util.find_spec("stepwatch.probe._kernels")
    if spec is None or spec.origin is None:
        return None
    try:
        return _Library(spec.origin)
    except (OSError, AttributeError):
        return None


def _torch_threads() -> int | None:
    """Address of ``GOMP_parallel`` of the OpenMP library that torch has loaded for all to see.

    The threads that torch computes with are awake and warm; others would compete with them.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError, TypeError):
        return None


_library = _load()
_parallel = _torch_threads()


def available() -> bool:
    """Whether the compiled code was built when Stepwatch was installed."""
    return _library is not None


def type_code(tensor: torch.Tensor) -> int | None:
    """The number of :data:`TYPES` by which the compiled code reads a tensor where it lies; None: it cannot."""
    if _library is None or type(tensor) not in PLAIN or not tensor.is_cpu or tensor.layout is not _STRIDED:
        return None
    if tensor.is_contiguous() and not tensor.is_neg() and not _is_functorch_wrapped(tensor):
        return TYPES.get(tensor.dtype)
    return None


def measure(tensors: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """All columns of tensors that have a :func:`type_code`; float64 [tensors, len(STAT_COLUMNS)].

    Raises:
        ValueError: a tensor has entries but no memory.
    """
    described = array("q")
    for tensor in tensors:
        address, numel = tensor.data_ptr(), tensor.numel()
        if not address and numel:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no memory; expected its entries")
        described.extend((address, numel, TYPES[tensor.dtype]))
    matrix = np.empty((len(tensors), len(STAT_COLUMNS)))
    measure_into(matrix.ctypes.data, described)
    return matrix


def measure_into(rows: int, described: array[int]) -> int:
    """Write the columns of tensors to memory; returns how many of them hold something that is not finite.

    Args:
        rows: address of float64 [tensors, len(STAT_COLUMNS)].
        described: data pointer, number of entries and type code of each tensor in turn.
    """
    if _library is None:
        raise RuntimeError("the compiled statistics were not built")
    count = len(described) // 3
    short = count < 256 and sum(described[1::3]) < _SHORT
    function = _library.measure_short if short else _library.measure
    broken: int = function(count, described.buffer_info()[0], rows, _parallel)
    if broken < 0:
        raise MemoryError(f"no memory for the statistics of {count} tensors")
    return broken


class SilenceCounter:
    """Counts for how many steps in a row each unit of an output has been silent: no entry above 0 or NaN.

    Args:
        units: number of units.
        windows: two numbers of steps.
    """

    def __init__(self, units: int, windows: tuple[int, int]) -> None:
        self.units = units
        self._silent_for = np.zeros(units, dtype=np.int32)
        self._windows = np.array(windows, dtype=np.int32)
        self._reached = np.empty(3, dtype=np.int64)
        self._pointers = [array.ctypes.data for array in (self._silent_for, self._windows, self._reached)]

    def observe(self, output: torch.Tensor, code: int, inner: int) -> list[int]:
        """Units silent now, and for at least the steps of each window.

        Args:
            output: contiguous [..., units, inner positions].
            code: its :func:`type_code`.
            inner: entries of one unit that lie side by side.
        """
        if _library is None:
            raise RuntimeError("the compiled statistics were not built")
        numel = output.numel()
        function = _library.silent_units_short if numel < _SHORT else _library.silent_units
        outer = numel // (self.units * inner)
        if function(output.data_ptr(), code, outer, self.units, inner, *self._pointers) != 0:
            raise MemoryError(f"no memory for {self.units} units")
        return self._reached.tolist()


def class_counts(logits: torch.Tensor, labels: torch.Tensor, ignored: int) -> NDArray[np.int64] | None:
    """Samples of each class, then how many of them have the first largest logit: int64 [2 * classes].

    None where compiled code cannot read them: logits other than contiguous [samples, classes] of single or
    double precision, labels other than contiguous int64 [samples].
    """
    code = type_code(logits)
    readable = labels.is_cpu and type(labels) is torch.Tensor and labels.dtype is torch.int64
    if _library is None or code not in (0, 1) or logits.dim() != 2 or not readable or not labels.is_contiguous():
        return None
    rows, classes = logits.shape
    counts = np.zeros(2 * classes, dtype=np.int64)
    function = _library.class_counts_short if rows * classes < _SHORT else _library.class_counts
    function(logits.data_ptr(), code, rows, classes, ignored, labels.data_ptr(), counts.ctypes.data)
    return counts
