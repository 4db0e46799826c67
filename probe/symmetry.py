"""Units of a layer that are equal: which stay so, no training will ever tell apart.

Two units with the same incoming weights compute the same; if what they are connected to treats them alike they get the
same gradient and stay the same. Whole weights are too much to compare: parts of two rows are equal only where the rows
are. They are copied at the first, second, fourth, eighth ... saved step, and compared in the writer's thread.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stepwatch.probe.capture import ModelCapture, Origin
from stepwatch.probe.fetch import Fetch
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.store.schema import EQUAL_UNITS_QUANTITY
from stepwatch.probe.weights import spread_weights

_LAYERS = 32
_UNITS = 256  # of each layer
_INPUTS = 64  # of each unit
_FEW = 4  # inputs: units with fewer may be equal by chance, in low precision
_EQUAL = 1e-5  # of the largest entry


class _Layer(NamedTuple):
    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None


class UnitSymmetry:
    """Adds the derived quantity ``equal_units`` of some layers, spread over the depth of the models.

    Args:
        models: those of the hook; they may grow.
    """

    def __init__(self, models: list[ModelCapture]) -> None:
        self._models = models
        self._models_seen = 0
        self._layers: list[_Layer] = []
        self._looks = 0

    def look(self, record: OpenRecord) -> None:
        """The weights of a saved step are as they were in its forward pass; at some of them, compare their units."""
        self._looks += 1
        if self._looks & (self._looks - 1):
            return
        if self._models_seen != len(self._models):
            self._models_seen = len(self._models)
            self._layers = self._choose()
        parts = [_part(layer) for layer in self._layers]
        if not parts:
            return
        fetch = Fetch(torch.cat([part.reshape(-1) for part in parts]))
        shapes = [(part.shape[0], part.shape[1]) for part in parts]
        vectors = functools.cache(functools.partial(_compare, fetch, shapes))
        for index, layer in enumerate(self._layers):
            record.add_derived(layer.name, EQUAL_UNITS_QUANTITY, lambda index=index: vectors()[index])  # type: ignore[misc]

    def _choose(self) -> list[_Layer]:
        def has_units(name: str, weight: nn.Parameter, origin: Origin) -> bool:
            if "Transpose" in (origin.module_type or ""):
                return False  # the first dimension is not that of units
            return name.endswith("weight") and len(weight) > 1 and weight[0].numel() >= _FEW

        parameters = {name: parameter for capture in self._models for name, parameter, _ in capture.parameters()}
        layers: list[_Layer] = []
        for name, weight in spread_weights(self._models, _LAYERS, has_units):
            bias = parameters.get(name.removesuffix("weight") + "bias")
            layers.append(_Layer(name, weight, bias if bias is not None and len(bias) == len(weight) else None))
        return layers


def _part(layer: _Layer) -> torch.Tensor:
    """Of some units, some of the incoming weights, and the bias, [units, entries]."""
    rows = layer.weight.detach()[:_UNITS].flatten(1)[:, :_INPUTS]
    if layer.bias is None or (layer.bias.dtype, layer.bias.device) != (rows.dtype, rows.device):
        return rows
    return torch.cat([rows, layer.bias.detach()[:_UNITS, None]], 1)


def _compare(fetch: Fetch, shapes: Sequence[tuple[int, int]]) -> list[NDArray[np.float64]]:
    """The vectors of all layers, from their parts one after the other."""
    entries, first, found = fetch().double().numpy(), 0, []
    for units, inputs in shapes:
        part = entries[first : first + units * inputs].reshape(units, inputs)
        first += units * inputs
        found.append(np.array([units, _equal(part), np.linalg.norm(part)]))
    return found


def _equal(units: NDArray[np.float64]) -> int:
    """How many rows are equal to another one and not zero. Equal rows are neighbours in the order of a projection."""
    size = np.abs(units).max(axis=1)
    some = units[np.isfinite(size) & (size > 0)]
    if len(some) < 2:
        return 0
    ordered = some[np.argsort(some @ np.sin(1.0 + np.arange(units.shape[1])), kind="stable")]
    same = np.abs(np.diff(ordered, axis=0)).max(axis=1) <= _EQUAL * np.abs(ordered[1:]).max(axis=1)
    return int((np.append(same, False) | np.insert(same, 0, False)).sum())
