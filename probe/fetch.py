"""Copies results from a device to the host without waiting for it."""

from __future__ import annotations

import torch


class Fetch:
    """A copy on its way to the host.

    On a CUDA device the copy goes to pinned memory, behind what computes the tensor. Elsewhere it is made
    when it is asked for; a tensor on the CPU must not be changed until then.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._copied: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(tensor.device))

    def ready(self) -> bool:
        """Whether calling it would not wait for a device."""
        return self._copied is None or bool(self._copied.query())  # type: ignore[no-untyped-call]

    def __call__(self) -> torch.Tensor:
        """Wait for the copy; to be called once."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensor.cpu()
