"""Copies results from a device to the host without waiting for it."""

from __future__ import annotations

from collections.abc import Callable

import torch


def fetch_later(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Start to copy a tensor to the host; the function returned, called once, waits for the copy.

    On a CUDA device the copy goes to pinned memory, behind what computes the tensor. Elsewhere it is made
    when it is asked for; a tensor on the CPU must not be changed until then.
    """
    if not tensor.is_cuda:
        return tensor.cpu
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(tensor.device))

    def fetch() -> torch.Tensor:
        copied.synchronize()
        return pinned

    return fetch
