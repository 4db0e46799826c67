"""Mistakes of the training loop that no statistic shows: gradients that nothing resets, a model left in eval mode."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from stepwatch.probe.fetch import Fetch
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.store.schema import EVAL_MODE_SCALAR, KEPT_GRADIENTS_SCALAR

_MODE_DEPENDENT = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)


class TrainingLoop:
    """Counts updates in a row for which gradients were not reset, and for which the model was in eval mode.

    Gradients count as kept through an update when at every backward pass before the next one a gradient is
    still the tensor that the optimizer was given, unchanged and not zero. One parameter stands for each optimizer;
    nothing waits for a device.
    """

    def __init__(self) -> None:
        self._watched: dict[torch.optim.Optimizer, _KeptGradient] = {}
        self._mode_dependent: list[nn.Module] | None = None
        self._in_eval_mode = 0
        self._told = False

    def backward_begins(self) -> None:
        """A backward pass begins: what had to be reset before it has been."""
        for kept in self._watched.values():
            kept.look()

    def updated(self, record: OpenRecord, optimizer: torch.optim.Optimizer, models: list[nn.Module]) -> None:
        """The optimizer has stepped. The counts are recorded at saved steps: once, and whenever they are not 0."""
        kept = self._watched.get(optimizer)
        if kept is None:
            kept = self._watched[optimizer] = _KeptGradient()
        kept.updated(optimizer)
        if optimizer is next(iter(self._watched)):
            self._in_eval_mode = self._in_eval_mode + 1 if self._all_in_eval_mode(models) else 0
        if not record.due:
            return
        updates = max(each.updates for each in self._watched.values())
        for name, count in ((KEPT_GRADIENTS_SCALAR, updates), (EVAL_MODE_SCALAR, self._in_eval_mode)):
            if count or not self._told:
                record.add_scalar(name, float(count))
        self._told = True

    def _all_in_eval_mode(self, models: list[nn.Module]) -> bool:
        if not models or models[0].training or any(model.training for model in models):
            return False
        if self._mode_dependent is None:
            self._mode_dependent = [
                module
                for model in models
                for module in model.modules()
                if isinstance(module, _MODE_DEPENDENT) and getattr(module, "p", 1) > 0
            ]
        return bool(self._mode_dependent) and not any(module.training for module in self._mode_dependent)


class _KeptGradient:
    """The gradient of one parameter of an optimizer, from one update to the next."""

    def __init__(self) -> None:
        self.updates = 0
        self._parameter: torch.Tensor | None = None
        self._seen: tuple[int, int] | None = None
        self._kept: bool | None = None
        self._pending: Fetch | None = None

    def updated(self, optimizer: torch.optim.Optimizer) -> None:
        self.updates = self.updates + 1 if self._kept else 0
        self._kept = None
        if self._parameter is None or self._parameter.grad is None:
            self._parameter = next(_with_gradient(optimizer), None)
        gradient = self._parameter.grad if self._parameter is not None else None
        self._seen = (id(gradient), gradient._version) if gradient is not None else None

    def look(self) -> None:
        if self._kept is False or self._seen is None or self._parameter is None:
            return
        gradient = self._parameter.grad
        self._kept = gradient is not None and (id(gradient), gradient._version) == self._seen
        if self._kept and gradient is not None:
            self._kept = self._not_zero(gradient)  # `.grad.data.zero_()` leaves the version as it is

    def _not_zero(self, gradient: torch.Tensor) -> bool:
        """Whether it holds something; on an accelerator whether it did when that was last asked."""
        with torch.no_grad():
            if gradient.is_cpu:
                return bool(gradient.any())
            pending, known = self._pending, False
            if pending is None or pending.ready():
                known = pending is not None and bool(pending())
                self._pending = Fetch(gradient.any())
            return known


def _with_gradient(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Its parameters that have a gradient, the smallest first."""
    held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    yield from sorted(held, key=lambda parameter: parameter.numel())
