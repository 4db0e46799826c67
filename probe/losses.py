"""Hears of every ``backward()`` and of gradient scaling, whichever way the script spells its loss.

A loss may be a module, a function or a line of arithmetic; what they have in common is that ``backward()``
is called on it. ``Tensor.backward`` calls ``torch.autograd.backward``, so that one function is wrapped
while somebody listens, and ``GradScaler.scale`` and ``GradScaler.step`` with it: the scaled loss is traced
back to the loss, and a step that the scaler skips (an overflow at a high scale, which is its normal way of
working) is known as one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch

_UNSCALED = "_stepwatch_unscaled"


class BackwardListener(Protocol):
    """What a hook wants to hear of."""

    def backward_begins(self, losses: list[torch.Tensor]) -> None:
        """``backward()`` was called on these tensors, unscaled."""

    def backward_ends(self) -> None:
        """It returned or raised."""

    def scaler_skipped(self, optimizer: torch.optim.Optimizer) -> None:
        """A GradScaler left this optimizer's step out because its gradients had overflowed."""

    def steps_of(self, optimizer: torch.optim.Optimizer) -> int:
        """How often this optimizer was seen to step."""


_listeners: list[BackwardListener] = []
_originals: dict[str, Callable[..., Any]] = {}


def listen(listener: BackwardListener) -> None:
    """Tell ``listener`` of everything from now on."""
    _listeners.append(listener)
    if not _originals:
        _install()


def unlisten(listener: BackwardListener) -> None:
    """Stop telling it; the last one restores torch's own functions."""
    if listener in _listeners:
        _listeners.remove(listener)
    if not _listeners:
        _restore()


def _install() -> None:
    backward = _originals["backward"] = torch.autograd.backward
    scale = _originals["scale"] = torch.amp.GradScaler.scale
    step = _originals["step"] = torch.amp.GradScaler.step

    @functools.wraps(backward)
    def heard_backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        listeners = tuple(_listeners)
        given = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        losses = [getattr(tensor, _UNSCALED, tensor) for tensor in given]
        for listener in listeners:
            listener.backward_begins(losses)
        try:
            return backward(given if not isinstance(tensors, torch.Tensor) else tensors, *args, **kwargs)
        finally:
            for listener in listeners:
                listener.backward_ends()

    @functools.wraps(scale)
    def heard_scale(self: torch.amp.GradScaler, outputs: Any) -> Any:
        scaled = scale(self, outputs)
        if isinstance(outputs, torch.Tensor) and scaled is not outputs:
            setattr(scaled, _UNSCALED, outputs.detach())
        return scaled

    @functools.wraps(step)
    def heard_step(self: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        before = [(listener, listener.steps_of(optimizer)) for listener in _listeners]
        result = step(self, optimizer, *args, **kwargs)
        for listener, count in before:
            if listener.steps_of(optimizer) == count:
                listener.scaler_skipped(optimizer)
        return result

    torch.autograd.backward = heard_backward
    torch.amp.GradScaler.scale = heard_scale  # type: ignore[method-assign]
    torch.amp.GradScaler.step = heard_step  # type: ignore[method-assign]


def _restore() -> None:
    if not _originals:
        return
    torch.autograd.backward = _originals["backward"]
    torch.amp.GradScaler.scale = _originals["scale"]  # type: ignore[method-assign]
    torch.amp.GradScaler.step = _originals["step"]  # type: ignore[method-assign]
    _originals.clear()
