"""What torch is doing at the moment, asked in the course of every step."""

from __future__ import annotations

import torch

_HAS_CUDA = torch.version.cuda is not None or torch.version.hip is not None


def uses_cuda() -> bool:
    """Whether this process has initialised CUDA (or ROCm); it is not initialised for that."""
    return _HAS_CUDA and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def is_traced() -> bool:
    """Whether torch compiles, exports, or captures a CUDA graph: what is called now is called once, for many steps."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return True
    return uses_cuda() and torch.cuda.is_current_stream_capturing()
