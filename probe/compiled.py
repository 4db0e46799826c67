"""Statistics of CPU tensors in one pass over their memory, by the compiled code of ``_kernels.c``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stepwatch.probe.store.schema import STAT_COLUMNS

TYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""What the compiled code reads, by its own numbers for them."""

PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Types of tensors that are nothing but their memory."""


def _load() -> Any:
    """The functions of ``_compiled.c``; None where they were not built, for want of a compiler say."""
    try:
        from stepwatch.probe import _compiled
    except ImportError:
        return None
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    _compiled.set_up(PLAIN, torch.strided, tuple(TYPES), is_wrapped, _torch_threads() or 0)
    return _compiled


def _torch_threads() -> int | None:
    """Address of ``GOMP_parallel`` of the OpenMP library that torch has loaded for all to see.

    The threads that torch computes with are awake and warm; others would compete with them.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError, TypeError):
        return None


_library = _load()


def available() -> bool:
    """Whether the compiled code was built when Stepwatch was installed."""
    return _library is not None


def measure(tensors: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """All columns of tensors that the compiled code reads where they lie; float64 [tensors, len(STAT_COLUMNS)]."""
    matrix = np.empty((len(tensors), len(STAT_COLUMNS)))
    _, left = measure_into(matrix.ctypes.data, tensors)
    assert not left
    return matrix


def measure_into(rows: int, tensors: Sequence[torch.Tensor]) -> tuple[int, list[int] | None]:
    """Write the columns of tensors to memory, row after row.

    Args:
        rows: address of float64 [tensors, len(STAT_COLUMNS)].
        tensors: any; those that the compiled code cannot read where they lie are left out.

    Returns:
        How many of them hold something that is not finite, and the indices of those left out, if there are any.
    """
    if _library is None:
        return 0, list(range(len(tensors)))
    found: tuple[int, list[int] | None] = _library.measure(tensors, rows)
    return found


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

    def observe(self, output: torch.Tensor, inner: int) -> tuple[int, int, int] | None:
        """Units silent now, and for at least the steps of each window; None where the output cannot be read.

        Args:
            output: contiguous [..., units, inner positions].
            inner: entries of one unit that lie side by side.
        """
        if _library is None:
            return None
        reached: tuple[int, int, int] | None = _library.silent_units(
            output, self.units, inner, self._silent_for, self._windows
        )
        return reached


def class_counts(logits: torch.Tensor, labels: torch.Tensor, ignored: int) -> NDArray[np.int64] | None:
    """Samples of each class, then how many of them have the first largest logit: int64 [2 * classes].

    None where compiled code cannot read them: logits other than contiguous [samples, classes] of single or
    double precision, labels other than contiguous int64 [samples].
    """
    if _library is None or logits.dim() != 2 or not labels.is_cpu or type(labels) is not torch.Tensor:
        return None
    if labels.dtype is not torch.int64 or not labels.is_contiguous():
        return None
    rows, classes = logits.shape
    counts = np.zeros(2 * classes, dtype=np.int64)
    read = _library.class_counts(logits, labels.data_ptr(), rows, classes, ignored, counts)
    return counts if read else None
