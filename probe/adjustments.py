"""Hears what a script does to gradients between the backward pass and the update: clipping, and the scale of AMP.

torch's functions are wrapped while somebody listens. Clipping by norm is heard in the function that
``clip_grad_norm_`` ends in, so that a script which imported that by name before is heard too; torch before 2.6 has no
such function, and clipping by value has none at all: these are heard where they are called by their full name.
Recorded at saved steps only; nothing waits for a device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import utils
from torch.nn.utils import clip_grad

from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.steps import StepTracker
from stepwatch.probe.store.schema import CLIP_LIMIT_SCALAR, CLIP_NORM_SCALAR, CLIP_VALUE_SCALAR, SCALE_SCALAR
from stepwatch.probe.torch_state import is_traced

_MOST_CALLS = 4  # of one step that are told apart: parameter groups, models
_by_norm = "_clip_grads_with_norm_" if hasattr(clip_grad, "_clip_grads_with_norm_") else "clip_grad_norm_"

_listeners: list[_Listener] = []
_originals: list[tuple[Any, str, Any]] = []


def listen(steps: StepTracker) -> None:
    """Record it into the open step of ``steps`` from now on."""
    _listeners.append(_Listener(steps))
    if not _originals:
        _install()


def unlisten(steps: StepTracker) -> None:
    """Stop; the last one restores torch's own functions."""
    _listeners[:] = [listener for listener in _listeners if listener.steps is not steps]
    while _originals and not _listeners:
        owner, name, original = _originals.pop()
        setattr(owner, name, original)


class _Listener:
    """What the open step of one hook is told; of several calls in it the first few, numbered."""

    def __init__(self, steps: StepTracker) -> None:
        self.steps = steps
        self._record: OpenRecord | None = None
        self._calls = 0

    def add(self, named: dict[str, float | torch.Tensor]) -> None:
        record = self._due()
        if record is None:
            return
        if record is not self._record:
            self._record, self._calls = record, 0
        if self._calls < _MOST_CALLS:
            suffix = f"/{self._calls}" if self._calls else ""
            self._calls += 1
            for name, value in named.items():
                record.add_scalar(name + suffix, value)

    def set_scale(self, scale: torch.Tensor) -> None:
        """A GradScaler is done with an update, which it may have left out: then the same step begins again."""
        self._calls = 0
        record = self._due()
        if record is not None:
            record.add_scalar(SCALE_SCALAR, scale)

    def _due(self) -> OpenRecord | None:
        record = self.steps.record
        return record if record is not None and record.due else None


def _install() -> None:
    clip_by_norm, clip_by_value = getattr(clip_grad, _by_norm), clip_grad.clip_grad_value_
    update = torch.amp.GradScaler.update

    @functools.wraps(clip_by_norm)
    def heard_norm(parameters: Any, max_norm: Any, *args: Any, **kwargs: Any) -> Any:
        returned = clip_by_norm(parameters, max_norm, *args, **kwargs)
        norm = args[0] if args and returned is None else kwargs.get("total_norm", returned)
        if type(norm) is torch.Tensor and not is_traced():  # that of sharded gradients would have to be gathered
            for listener in _listeners:
                listener.add({CLIP_NORM_SCALAR: norm, CLIP_LIMIT_SCALAR: float(max_norm)})
        return returned

    @functools.wraps(clip_by_value)
    def heard_value(parameters: Any, clip_value: Any, *args: Any, **kwargs: Any) -> None:
        clip_by_value(parameters, clip_value, *args, **kwargs)
        if not is_traced():
            for listener in _listeners:
                listener.add({CLIP_VALUE_SCALAR: float(clip_value)})

    @functools.wraps(update)
    def heard_update(self: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> None:
        update(self, *args, **kwargs)
        if self._scale is not None:
            for listener in _listeners:
                listener.set_scale(self._scale)

    _replace(clip_grad, _by_norm, heard_norm)
    if _by_norm == "clip_grad_norm_":
        _replace(utils, _by_norm, heard_norm)
    for owner in (clip_grad, utils):
        _replace(owner, "clip_grad_value_", heard_value)
    _replace(torch.amp.GradScaler, "update", heard_update)


def _replace(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    _originals.append((owner, name, getattr(owner, name)))
    setattr(owner, name, wrapper)
