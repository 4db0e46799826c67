"""The order in which tensors come into being within a training step."""

from __future__ import annotations

from stepwatch.probe.collections import CollectionKeys
from stepwatch.probe.store.records import TensorInfo
from stepwatch.rules.step import is_loss

OWN_SCALARS = "stepwatch/"


def kind_of(name: str, info: TensorInfo | None) -> str:
    """One of "parameter", "activation", "loss", "gradient" and "scalar"."""
    collections = info.collections if info is not None else ()
    if CollectionKeys.GRADIENTS in collections:
        return "gradient"
    if CollectionKeys.WEIGHTS in collections or CollectionKeys.BIASES in collections:
        return "parameter"
    if is_loss(name):
        return "loss"
    return "activation" if info is not None else "scalar"


_ORDER = ("parameter", "activation", "loss", "gradient", "scalar")


def place_of(name: str, info: TensorInfo | None) -> tuple[int, int]:
    """When a tensor comes into being within a training step; backpropagation goes from the last layer to the first."""
    kind = kind_of(name, info)
    order = info.order if info is not None else 0
    return _ORDER.index(kind), -order if kind == "gradient" else order
