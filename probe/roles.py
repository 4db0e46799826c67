"""Which parameters take part in training: what a rule needs to say why one never changes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from stepwatch.probe.capture import ModelCapture
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.store.schema import PARAMETERS_SCALAR, ROLE_QUANTITY

_ALL_AGAIN = 64  # looks


class _Role(NamedTuple):
    """The vector of the derived quantity ``role``."""

    requires_grad: bool
    held: bool
    had_gradient: bool
    ran: bool


_TAKES_PART = _Role(True, True, True, True)


class _Watched(NamedTuple):
    name: str
    parameter: nn.Parameter
    ran: bool


class ParameterRoles:
    """Records the role of each parameter that does not take part in training, and when that changes.

    A parameter that requires a gradient, is held by an optimizer and has had a gradient takes part. All parameters are
    looked at in the first saved steps and then rarely, those that have had no gradient so far at each saved step.

    Args:
        models, optimizers: those of the hook; they may grow.
    """

    def __init__(self, models: list[ModelCapture], optimizers: list[torch.optim.Optimizer]) -> None:
        self._models = models
        self._optimizers = optimizers
        self._watched: list[_Watched] = []
        self._without: list[_Watched] = []  # a gradient, so far
        self._told: dict[str, _Role] = {}
        self._models_seen = 0
        self._looks = 0

    def look(self, record: OpenRecord, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has the gradients of a saved step."""
        if self._models_seen != len(self._models):
            self._list_parameters(record)
        without = [each for each in self._without if _lacks_gradient(each.parameter)]
        changed, self._without = len(without) != len(self._without), without
        if optimizer is not self._optimizers[0]:
            return
        self._looks += 1
        if changed or self._looks % _ALL_AGAIN == 0 or self._looks & (self._looks - 1) == 0:
            self._tell(record)

    def _list_parameters(self, record: OpenRecord) -> None:
        self._models_seen = len(self._models)
        self._watched = [
            _Watched(name, parameter, capture.ran(origin.module))
            for capture in self._models
            for name, parameter, origin in capture.parameters()
        ]
        self._without = list(self._watched)
        record.add_scalar(PARAMETERS_SCALAR, float(len(self._watched)))

    def _tell(self, record: OpenRecord) -> None:
        held = {id(p) for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]}
        without = {id(each.parameter) for each in self._without}
        for each in self._watched:
            key = id(each.parameter)
            had = key not in without
            role = _Role(each.parameter.requires_grad, key in held, had, had or each.ran)
            if role != self._told.get(each.name, _TAKES_PART):
                self._told[each.name] = role
                vector = np.array(role, dtype=np.float64)
                record.add_derived(each.name, ROLE_QUANTITY, lambda vector=vector: vector)  # type: ignore[misc]


def _lacks_gradient(parameter: nn.Parameter) -> bool:
    """Of a parameter whose entries are all on other ranks (FSDP's original parameters) there is none to be had here."""
    return parameter.grad is None and (is_lazy(parameter) or parameter.numel() > 0)
