"""Statistics of many tensors at once: the columns of the ``stats`` table.

On the CPU one pass of compiled code over the memory gives all columns (``_kernels.c``); where that could not
be built, and on accelerators, they are made of torch's reductions. On an accelerator nothing waits: the
results are copied to pinned memory behind the computation and fetched later, by another thread.

Sums are accumulated in double precision, so ``mean``, ``l1`` and ``l2`` agree with NumPy's in float64 to a
relative 1e-12 of their own size (of ``l1 / numel`` for a mean that cancels), ``std`` to 1e-8.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from stepwatch.probe.store.schema import STAT_COLUMNS

_KERNEL_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

Matrix = NDArray[np.float64]


class PendingStatistics:
    """Statistics on their way from a device; float64 [tensors, len(STAT_COLUMNS)] when they arrive."""

    def __init__(self, result: Callable[[], Matrix]) -> None:
        self._result = result

    def result(self) -> Matrix:
        """Wait for the device, which only the caller does, and return them. To be called once."""
        return self._result()


def unsupported(tensor: torch.Tensor) -> str | None:
    """Why a tensor has no statistics, or None where it has."""
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        return "it is not initialised yet"
    if tensor.is_meta:
        return "it is on the meta device and has no values"
    if tensor.is_nested:
        return "nested tensors are not supported"
    return None


def measure(tensors: Sequence[torch.Tensor]) -> PendingStatistics:
    """Statistics of all these tensors; they may be changed as soon as this returns.

    Integers and booleans count as numbers, a complex tensor by the magnitudes of its entries, a quantised
    one by the values it stands for, a sparse one with its implicit zeros, a distributed one by the shard on
    this rank.

    Args:
        tensors: of any dtype, shape and layout for which :func:`unsupported` is None.
    """
    with torch.no_grad():
        dense = [_dense(tensor) for tensor in tensors]
        if all(tensor.device.type == "cpu" for tensor in dense):
            matrix = _on_cpu(dense)
            return PendingStatistics(lambda: matrix)
        return _on_devices(dense)


def backend() -> str:
    """Where statistics of CPU tensors come from: "compiled" or "torch"."""
    return "torch" if _kernel is None else "compiled"


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The entries as a flat tensor of real numbers."""
    tensor = tensor.detach()
    local = getattr(tensor, "_local_tensor", None)  # DTensor
    if isinstance(local, torch.Tensor):
        tensor = local
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = (tensor.coalesce() if tensor.layout is torch.sparse_coo else tensor).to_dense()
    if tensor.is_complex():
        tensor = tensor.abs()
    if tensor.dtype not in _KERNEL_TYPES:
        # int64 above 2^53 is rounded; the others fit a double exactly.
        wide = tensor.dtype in (torch.int64, torch.int32, torch.uint64, torch.uint32)
        tensor = tensor.to(torch.float64 if wide else torch.float32)
    return tensor.reshape(-1)


def _load_kernel() -> Callable[..., int] | None:
    spec = importlib.util.find_spec("stepwatch.probe._kernels")
    if spec is None or spec.origin is None:
        return None
    try:
        function = ctypes.CDLL(spec.origin).stepwatch_measure
    except (OSError, AttributeError):
        return None
    pointer = ctypes.c_void_p
    function.argtypes = [ctypes.c_int64, pointer, pointer, pointer, pointer, ctypes.c_int32]
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


_kernel = _load_kernel()


def _on_cpu(tensors: list[torch.Tensor]) -> Matrix:
    count = len(tensors)
    if _kernel is None:
        return torch.stack([_columns(tensor) for tensor in tensors]).numpy()
    contiguous = [tensor.contiguous() for tensor in tensors]  # alive until the call returns
    described = np.array([(t.data_ptr(), t.numel()) for t in contiguous], dtype=np.int64).T.copy()
    types = np.array([_KERNEL_TYPES[t.dtype] for t in contiguous], dtype=np.int32)
    matrix = np.empty((count, len(STAT_COLUMNS)))
    numel = described.ctypes.data + described.strides[0]
    threads = torch.get_num_threads()
    if _kernel(count, described.ctypes.data, numel, types.ctypes.data, matrix.ctypes.data, threads) != 0:
        raise MemoryError("no memory for the statistics")
    return matrix


def _on_devices(tensors: list[torch.Tensor]) -> PendingStatistics:
    rows_by_device: dict[torch.device, list[int]] = {}
    for row, tensor in enumerate(tensors):
        rows_by_device.setdefault(tensor.device, []).append(row)
    fetches = []
    for rows in rows_by_device.values():
        stacked = torch.stack([_columns(tensors[row]) for row in rows])
        fetches.append((rows, fetch_later(stacked)))

    def result() -> Matrix:
        matrix = np.empty((len(tensors), len(STAT_COLUMNS)))
        for rows, fetch in fetches:
            matrix[rows] = fetch().numpy()
        return matrix

    return PendingStatistics(result)


def fetch_later(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Start to copy a tensor to the host; the function returned waits for the copy."""
    if not tensor.is_cuda:
        host = tensor.to("cpu")
        return lambda: host
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def fetch() -> torch.Tensor:
        copied.synchronize()
        return pinned

    return fetch


def _columns(flat: torch.Tensor) -> torch.Tensor:
    """All columns of one flat tensor as a float64 vector on its device, without waiting for it."""
    if flat.numel() == 0:
        empty = [0.0, 0.0, 0.0, 0.0, *[float("nan")] * 4, 0.0, 0.0, float("nan")]
        return torch.tensor(empty, dtype=torch.float64, device=flat.device)
    wide = torch.float64 if flat.device.type != "mps" else torch.float32
    finite = torch.isfinite(flat)
    count = finite.sum()
    values = torch.where(finite, flat, 0).to(wide)
    none = count == 0
    nan = torch.full((), float("nan"), dtype=wide, device=flat.device)
    low = torch.where(none, nan, torch.where(finite, flat, float("inf")).amin().to(wide))
    high = torch.where(none, nan, torch.where(finite, flat, float("-inf")).amax().to(wide))
    largest = torch.maximum(low.abs(), high.abs())
    # Scaled by the largest magnitude, no square leaves the range of a double.
    scale = torch.where(none | (largest == 0), torch.ones_like(largest), largest)
    scaled = values / scale
    mean = scaled.sum() / count
    spread = torch.where(finite, scaled - mean, 0)
    columns = [
        torch.full((), flat.numel(), dtype=wide, device=flat.device),
        torch.isnan(flat).sum().to(wide),
        torch.isinf(flat).sum().to(wide),
        (flat == 0).sum().to(wide),
        low,
        high,
        mean * scale,
        ((spread * spread).sum() / count).sqrt() * scale,
        values.abs().sum(),
        (scaled * scaled).sum().sqrt() * scale,
        largest,
    ]
    return torch.stack(columns)
