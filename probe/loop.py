"""Mistakes of the training loop that no statistic shows: gradients that nothing resets, what was left in eval mode."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from stepwatch.probe.fetch import Fetch
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.store.schema import (
    EVAL_MODE_SCALAR,
    KEPT_GRADIENTS_SCALAR,
    LEFT_IN_EVAL_QUANTITY,
    PART_IN_EVAL_SCALAR,
)

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
        self._parts: _PartsInEvalMode | None = None
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
        if self._parts is None:
            self._parts = _PartsInEvalMode(models)
        counts = {
            KEPT_GRADIENTS_SCALAR: updates,
            EVAL_MODE_SCALAR: self._in_eval_mode,
            PART_IN_EVAL_SCALAR: self._parts.look(record),
        }
        for name, count in counts.items():
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


class _PartsInEvalMode:
    """Dropout and batch norm layers in eval mode although their model is in train mode and what they serve is trained.

    Two things look like it and are meant: all batch norms of a model frozen, and frozen parameters with their layers.
    A batch norm counts only where it was in train mode before.
    """

    def __init__(self, models: list[nn.Module]) -> None:
        self._dropouts: list[_Layer] = []
        self._norms: list[_Layer] = []
        self._were_training: set[nn.Module] = set()
        self._since: int | None = None
        for model in models:
            inside = {child: parent for parent in model.modules() for child in parent.children()}
            for path, module in model.named_modules():
                if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                    self._dropouts.append(_Layer(model, path, module, inside.get(module, model)))
                elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                    serves = module if module.affine else inside.get(module, model)
                    self._norms.append(_Layer(model, path, module, serves))

    def look(self, record: OpenRecord) -> int:
        """Updates in a row with such layers, as far as saved steps show; which they are is recorded."""
        left = [layer for layer in self._dropouts if layer.is_left()]
        norms = [layer for layer in self._norms if layer.module in self._were_training and layer.is_left()]
        if len(norms) < len(self._norms) or left:
            left += norms
        self._were_training.update(layer.module for layer in self._norms if layer.module.training)
        if not left:
            self._since = None
            return 0
        self._since = record.step if self._since is None else self._since
        counts = np.array([len(left), len(self._dropouts) + len(self._norms)], dtype=np.float64)
        record.add_derived(_common_path([layer.path for layer in left]), LEFT_IN_EVAL_QUANTITY, lambda: counts)
        return record.step - self._since + 1


class _Layer(NamedTuple):
    """A layer that does something else in eval mode, and the module whose parameters it is there for."""

    model: nn.Module
    path: str
    module: nn.Module
    serves: nn.Module

    def is_left(self) -> bool:
        trained = self.model.training and not self.module.training
        return trained and any(parameter.requires_grad for parameter in self.serves.parameters())


def _common_path(paths: list[str]) -> str:
    """The module that all of these are in, or one of them is; "" for the model itself."""
    parts = [path.split(".") for path in paths]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))
    return ".".join(names[0] for names in shared)


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
