"""Statistics of many tensors at once: the columns of the ``stats`` table.

On the CPU one pass of compiled code over the memory gives all columns (:mod:`.compiled`), on CUDA devices one of
Triton's (:mod:`.triton_kernels`); where there is neither, and on other accelerators, torch's reductions over all
tensors together give them (:mod:`.batched`). On an
accelerator nothing waits: the results are copied to pinned memory behind the computation and fetched later,
by another thread. (A sparse COO gradient on an accelerator is coalesced, which waits for it.)

Counts, ``min``, ``max`` and ``abs_max`` are exact. The others differ from NumPy's in float64 by less than 1e-6
of their size (``mean``: of ``l1 / numel``) for the tensors of a training job, and for whatever can be contrived
by at most 2e-6, ``std`` by 1e-5. A mean far from zero takes no digits off ``std``, no magnitude overflows, and
where all entries are equal, ``mean`` is that entry and ``std`` is 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from stepwatch.probe import batched, compiled
from stepwatch.probe.store.schema import STAT_COLUMNS

log = logging.getLogger("stepwatch")

Matrix = NDArray[np.float64]

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_DTYPES = frozenset(
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if hasattr(torch, name)
)


class PendingStatistics:
    """Statistics on their way from a device; float64 [tensors, len(STAT_COLUMNS)] when they arrive."""

    def __init__(self, result: Callable[[], Matrix]) -> None:
        self._result = result

    def result(self) -> Matrix:
        """Wait for the device, which only the caller does, and return them. To be called once."""
        return self._result()


def backend() -> str:
    """Where statistics of CPU tensors come from: "compiled" or "torch"."""
    return "compiled" if compiled.available() else "torch"


def unsupported(tensor: torch.Tensor) -> str | None:
    """Why a tensor has no statistics, or None where it has."""
    if tensor.is_nested:
        return "nested tensors are not supported"
    if type(tensor) not in compiled.PLAIN:
        reason = _unsupported_type(tensor)
        if reason or hasattr(tensor, "_local_tensor"):
            return reason
    if tensor.is_meta:
        return "it is on the meta device and has no values"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "it is inside a function transform of torch.func"
    if tensor.dtype not in _DTYPES and not tensor.is_quantized:
        return f"its dtype {tensor.dtype} is not supported"
    if _is_freed(tensor):
        return "its memory is freed"  # a parameter that is sharded at the moment
    return None


def measure(tensors: Sequence[torch.Tensor]) -> PendingStatistics:
    """Statistics of all these tensors; they may be changed as soon as this returns.

    Integers and booleans count as numbers, a complex tensor by the magnitudes of its entries, a quantised
    one by the values it stands for, a sparse one with its implicit zeros, a distributed one by the shard on
    this rank. Nothing is kept of them, and no autograd graph is built.

    Args:
        tensors: of any dtype, shape and layout for which :func:`unsupported` is None.

    Raises:
        ValueError: a tensor has entries but no memory.
    """
    matrix = np.empty((len(tensors), len(STAT_COLUMNS)))
    _, left = compiled.measure_into(matrix.ctypes.data, tensors)
    if not left:
        return PendingStatistics(lambda: matrix)
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        others = _measure_any([tensors[row] for row in left])
    places = np.array(left) - np.arange(len(left))  # in the rows of those that were read
    return PendingStatistics(lambda: np.insert(matrix[: -len(places)], places, others.result(), 0))


def _unsupported_type(tensor: torch.Tensor) -> str | None:
    if isinstance(tensor, (UninitializedBuffer, UninitializedParameter)):
        return "it is not initialised yet"
    if isinstance(tensor, FakeTensor):
        return "it is a FakeTensor and has no values"
    local = getattr(tensor, "_local_tensor", None)  # DTensor
    if isinstance(local, torch.Tensor):
        return unsupported(local)
    if type(tensor).__torch_dispatch__ != torch.Tensor.__torch_dispatch__:
        return f"tensors of type {type(tensor).__name__} are not supported"
    return None


def _measure_any(tensors: Sequence[torch.Tensor]) -> PendingStatistics:
    """Put tensors into a form that can be measured, and each to the device where it is."""
    count = len(tensors)  # the function returned below keeps no tensor
    zeros = np.zeros(count)
    rows_on: dict[tuple[torch.device, bool], list[int]] = {}
    real: list[torch.Tensor] = []
    for row, tensor in enumerate(tensors):
        stored = _stored_entries(tensor)
        zeros[row] = _local(tensor).numel() - stored.numel()
        real.append(_real(stored))
        fused = real[row].is_cuda and (kernels := _fused_kernels()) is not None and kernels.readable(real[row])
        rows_on.setdefault((real[row].device, fused), []).append(row)
    fetches = [(rows, _start([real[row] for row in rows])) for rows in rows_on.values()]

    def result() -> Matrix:
        matrix = np.empty((count, len(STAT_COLUMNS)))
        for rows, fetch in fetches:
            matrix[rows] = fetch()
        return _with_zeros(matrix, zeros)

    return PendingStatistics(result)


def _is_freed(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.data_ptr() and tensor.numel() > 0


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return getattr(tensor, "_local_tensor", tensor).detach()


def _stored_entries(tensor: torch.Tensor) -> torch.Tensor:
    """What a tensor holds beside implicit zeros, as a strided tensor."""
    tensor = _local(tensor)
    if _is_freed(tensor):
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no memory that can be read")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout in _SPARSE:
        return (tensor.coalesce() if tensor.layout is torch.sparse_coo else tensor).values()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers that statistics are taken of, with no lazy sign and in the order of the memory."""
    if tensor.is_complex():
        tensor = torch.hypot(tensor.real.double(), tensor.imag.double())
    elif tensor.dtype not in compiled.TYPES:
        # All fit exactly but 64-bit integers above 2^53, which are rounded.
        wide = torch.float32 if tensor.dtype.itemsize <= 2 else torch.float64
        tensor = tensor.to(wide)
    by_stride = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.resolve_neg().permute(by_stride)


def _start(tensors: list[torch.Tensor]) -> Callable[[], Matrix]:
    """Begin with tensors of one device; the function returned waits for the result."""
    if tensors[0].is_cpu and compiled.available():
        matrix = compiled.measure([tensor.contiguous() for tensor in tensors])
        return lambda: matrix
    kernels = _fused_kernels() if tensors[0].is_cuda else None
    if kernels is not None and kernels.readable(tensors[0]):
        try:
            found: Callable[[], Matrix] = kernels.measure(tensors)
            return found
        except Exception as error:  # compiled when it is first used: by a compiler that may be missing
            global _triton_failed
            _triton_failed = True
            log.warning("statistics are computed by torch's own reductions: Triton failed", exc_info=error)
    return batched.measure(tensors)


_triton_failed = False


def _fused_kernels() -> Any:
    """:mod:`.triton_kernels`, or None where Triton is not installed or does not work."""
    global _triton_failed
    if _triton_failed:
        return None
    try:
        from stepwatch.probe import triton_kernels
    except ImportError:
        _triton_failed = True
        return None
    return triton_kernels


def _with_zeros(matrix: Matrix, zeros: NDArray[np.float64]) -> Matrix:
    """Statistics after so many zeros have joined each tensor."""
    sparse = zeros > 0
    numel, n_nan, n_inf, n_zero, low, high, mean, std, l1, l2, largest = matrix[sparse].T
    joined = zeros[sparse]
    finite = numel - n_nan - n_inf
    mean, std = np.where(finite > 0, mean, 0), np.where(finite > 0, std, 0)
    share = finite / (finite + joined)
    columns = [
        numel + joined,
        n_nan,
        n_inf,
        n_zero + joined,
        np.fmin(low, 0),
        np.fmax(high, 0),
        mean * share,
        np.sqrt(share) * np.hypot(std, mean * np.sqrt(1 - share)),
        l1,
        l2,
        np.fmax(largest, 0),
    ]
    matrix[sparse] = np.stack(columns, 1)
    return matrix
