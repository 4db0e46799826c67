"""How far an update moves the weights, measured on a sample at saved steps.

Norms of gradients do not tell: what an optimizer makes of a gradient depends on its state. A thousand entries of
each of a few weights, copied before and after the update and compared in the writer's thread, tell it for any
optimizer. Copies are made at every fourth saved step: in the thread that trains, they cost a fifth of what saving does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stepwatch.probe.capture import ModelCapture
from stepwatch.probe.fetch import Fetch
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.store.schema import UPDATE_QUANTITY
from stepwatch.probe.weights import spread_weights

_WEIGHTS = 4
_ENTRIES = 1024  # of each
_EVERY = 4  # saved steps


class _Weight(NamedTuple):
    """A weight, and a view of the part of it that is copied, as long as the weight is at this address."""

    name: str
    parameter: nn.Parameter
    part: torch.Tensor
    address: int


class UpdateSample:
    """Part of some weights of each optimizer, spread over the depth of the models.

    Args:
        models: those of the hook; they may grow.
    """

    def __init__(self, models: list[ModelCapture]) -> None:
        self._models = models
        self._chosen: dict[torch.optim.Optimizer, list[_Weight]] = {}
        self._turns: dict[torch.optim.Optimizer, int] = {}
        self._sampled: list[_Weight] = []
        self._gradients: list[torch.Tensor] = []
        self._before: torch.Tensor | None = None

    def before(self, optimizer: torch.optim.Optimizer) -> None:
        """The update of a saved step begins; some of them are measured."""
        self._before = None
        turn = self._turns[optimizer] = self._turns.get(optimizer, -1) + 1
        if turn % _EVERY or getattr(optimizer, "found_inf", None) is not None:
            return  # an optimizer that knows of infinities may leave the update out by itself
        self._sampled, self._gradients = [], []
        for each in self._weights(optimizer):
            gradient = each.parameter.grad
            if gradient is not None and gradient.layout is torch.strided:
                self._sampled.append(each)
                self._gradients.append(_part(gradient))
        if self._sampled:
            self._before = torch.cat([each.part for each in self._sampled])

    def after(self, record: OpenRecord) -> None:
        """It is done: add the derived quantity ``update`` of each weight."""
        before, self._before = self._before, None
        if before is None:
            return
        after = torch.cat([each.part for each in self._sampled])
        gradients = torch.cat(self._gradients)
        fetches = Fetch(before), Fetch(after), Fetch(gradients)
        rows = functools.cache(functools.partial(_compare, fetches, [len(part) for part in self._gradients]))
        self._gradients.clear()
        for index, each in enumerate(self._sampled):
            record.add_derived(each.name, UPDATE_QUANTITY, lambda index=index: rows()[index])  # type: ignore[misc]

    def gradients(self, optimizer: torch.optim.Optimizer) -> tuple[str, torch.Tensor] | None:
        """The name of the first weight that is sampled, and a copy of the same part of the gradients of all, [entries].

        None where one of them has no gradient.
        """
        chosen = self._weights(optimizer)
        parts = [each.parameter.grad for each in chosen]
        whole = [_part(part) for part in parts if part is not None and part.layout is torch.strided]
        return (chosen[0].name, torch.cat(whole)) if whole and len(whole) == len(chosen) else None

    def _weights(self, optimizer: torch.optim.Optimizer) -> list[_Weight]:
        chosen = self._chosen.get(optimizer)
        if chosen is None or any(each.parameter.data_ptr() != each.address for each in chosen):
            chosen = self._chosen[optimizer] = self._choose(optimizer)
        return chosen

    def _choose(self, optimizer: torch.optim.Optimizer) -> list[_Weight]:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        chosen = spread_weights(self._models, _WEIGHTS, lambda name, weight, origin: id(weight) in held)
        return [_Weight(name, weight, _part(weight), weight.data_ptr()) for name, weight in chosen]


def _part(tensor: torch.Tensor) -> torch.Tensor:
    """Entries from the middle of a tensor."""
    flat = tensor.detach().reshape(-1)
    count = len(flat)
    return flat if count <= _ENTRIES else flat.narrow(0, (count - _ENTRIES) // 2, _ENTRIES)


def _compare(fetches: Sequence[Fetch], sizes: Sequence[int]) -> list[NDArray[np.float64]]:
    """The vectors of the weights from the entries of all, one after the other."""
    before, after, gradients = (fetch().double().numpy() for fetch in fetches)
    found, first = [], 0
    for size in sizes:
        part = slice(first, first + size)
        first += size
        change = after[part] - before[part]
        moved = gradients[part] != 0
        left = moved & (change == 0)
        found.append(np.array([np.linalg.norm(change), np.linalg.norm(before[part]), moved.sum(), left.sum()], float))
    return found
