"""Measures the tensors of a step: activations as they pass, parameters and gradients at the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stepwatch.probe.capture import ModelCapture, Origin
from stepwatch.probe.collections import CollectionRegistry
from stepwatch.probe.derived import DerivedQuantities
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.statistics import PendingStatistics, measure, unsupported
from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.schema import COUNT_COLUMNS


class _Membership(NamedTuple):
    """Collections of a tensor, and whether any that is saved wants it whole."""

    collections: tuple[str, ...]
    raw: bool


class _Parameter(NamedTuple):
    name: str
    tensor: nn.Parameter
    raw: bool


class _Selection(NamedTuple):
    """Parameters and gradients that one set of due collections selects."""

    weights: list[_Parameter]
    gradients: dict[int, _Parameter]


class TensorRecorder:
    """Adds tensors to open records and describes each once.

    Args:
        registry: collections and what of them is saved.
        raw: whether whole tensors are saved beside statistics.
        describe: told of every tensor before its first record.
        note: told what cannot be recorded, and why.
    """

    def __init__(
        self,
        registry: CollectionRegistry,
        *,
        raw: bool,
        describe: Callable[[TensorInfo], None],
        note: Callable[[str], None],
    ) -> None:
        self.models: list[ModelCapture] = []
        self._registry = registry
        self._raw = raw
        self._tell = describe
        self._note = note
        self._derived = DerivedQuantities()
        self._described: set[str] = set()
        self._memberships: dict[tuple[str, Origin], _Membership] = {}
        self._selections: dict[frozenset[str], _Selection] = {}
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}

    def add_model(self, capture: ModelCapture) -> None:
        """Record this model too."""
        self.models.append(capture)
        self._selections.clear()

    def arm(self, *, first: bool) -> None:
        """The coming forward pass is recorded; in the first one the order of modules is learnt."""
        for capture in self.models:
            if first:
                capture.watch_order()
            capture.arm()

    def disarm(self) -> None:
        """Forward passes are not looked at until :meth:`arm`."""
        for capture in self.models:
            capture.disarm()

    def intern(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The one tuple object for these names."""
        return self._names.setdefault(names, names)

    def see_call(
        self,
        record: OpenRecord,
        names: Sequence[str],
        tensors: Sequence[torch.Tensor],
        origin: Origin,
        order: int,
    ) -> None:
        """Tensors of a module call, or of the script's own."""
        chosen: list[tuple[str, torch.Tensor]] = []
        for name, tensor in zip(names, tensors, strict=True):
            member = self._members(name, origin)
            if record.due.isdisjoint(member.collections) or not self._describe(name, tensor, origin, order):
                continue
            chosen.append((name, tensor))
            if member.raw:
                record.add_value(name, tensor)
        if chosen:
            detached = [tensor.detach() for _, tensor in chosen]
            record.add_statistics([name for name, _ in chosen], measure(detached))

    def see_output(self, record: OpenRecord, name: str, module: nn.Module, output: torch.Tensor) -> None:
        """Derived quantities of a module's output."""
        self._derived.see_output(record, name, module, output)

    def see_labels(self, record: OpenRecord, name: str, loss: nn.Module, inputs: Sequence[Any]) -> None:
        """Derived quantities of what a loss module was given."""
        self._derived.see_labels(record, name, loss, inputs)

    def see_loss(self, record: OpenRecord, name: str, loss: torch.Tensor, module_type: str | None) -> None:
        """A loss, whenever it was computed."""
        self._describe(name, loss, Origin(("losses",), None, module_type), 0)
        record.add_loss(name, loss)

    def see_weights(self, record: OpenRecord) -> None:
        """Parameters as they are before the update."""
        self._see_parameters(record, [(p, p.tensor) for p in self._select(record).weights])

    def see_gradients(self, record: OpenRecord, parameters: list[torch.Tensor], optimizer: Any) -> None:
        """Gradients that the optimizer is given: accumulated, clipped and unscaled.

        An optimizer that unscales by itself (the fused ones, under a GradScaler) holds the scale; what is
        recorded is divided by it, and nothing is recorded when the scaler found an overflow.
        """
        selected = self._select(record).gradients
        pairs = []
        for parameter in parameters:
            entry = selected.get(id(parameter))
            if entry is not None and parameter.grad is not None:
                pairs.append((entry, parameter.grad))
        scale, overflow = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        if scale is None:
            self._see_parameters(record, pairs)
        else:
            self._see_parameters(record, pairs, lambda pending: _Unscaled(pending, scale, overflow))

    def parameters_outside(self, record: OpenRecord, held: set[int]) -> list[torch.Tensor]:
        """Parameters whose gradients are recorded although no optimizer holds them; ``held`` by ``id``."""
        return [entry.tensor for key, entry in self._select(record).gradients.items() if key not in held]

    def _see_parameters(
        self,
        record: OpenRecord,
        pairs: list[tuple[_Parameter, torch.Tensor]],
        wrap: Callable[[PendingStatistics], Any] | None = None,
    ) -> None:
        names, tensors = [], []
        for entry, tensor in pairs:
            if entry.name not in self._described:
                continue
            reason = unsupported(tensor)
            if reason:
                self._note(f"{entry.name} is not recorded: {reason}")
                continue
            names.append(entry.name)
            tensors.append(tensor.detach())
            if entry.raw:
                record.add_value(entry.name, tensor)
        if names:
            pending = measure(tensors)
            record.add_statistics(names, wrap(pending) if wrap else pending)

    def _select(self, record: OpenRecord) -> _Selection:
        selection = self._selections.get(record.due)
        if selection is None:
            selection = self._selections[record.due] = _Selection([], {})
            for capture in self.models:
                for name, parameter, origin in capture.parameters():
                    order = capture.order_of(origin.module)
                    for tensor_name, is_gradient in ((name, False), (f"gradient/{name}", True)):
                        member = self._members(tensor_name, origin)
                        if record.due.isdisjoint(member.collections):
                            continue
                        self._describe(tensor_name, parameter, origin, order)
                        entry = _Parameter(tensor_name, parameter, member.raw)
                        if is_gradient:
                            selection.gradients[id(parameter)] = entry
                        else:
                            selection.weights.append(entry)
        return selection

    def _members(self, name: str, origin: Origin) -> _Membership:
        key = (name, origin)
        found = self._memberships.get(key)
        if found is None:
            collections = self._registry.of_tensor(name, origin.collections)
            configs = [collection.reduction_config for collection in self._registry.saved(collections)]
            raw = any(config.save_raw_tensor if config else self._raw for config in configs)
            found = self._memberships[key] = _Membership(collections, raw)
        return found

    def _describe(self, name: str, tensor: torch.Tensor, origin: Origin, order: int) -> bool:
        """Describe the tensor when it is new; whether it can be recorded."""
        if name in self._described:
            return True
        reason = unsupported(tensor)
        if reason:
            self._note(f"{name} is not recorded: {reason}")
            return False
        self._described.add(name)
        self._tell(
            TensorInfo(
                name=name,
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                collections=self._members(name, origin).collections,
                module=origin.module,
                module_type=origin.module_type,
                order=order,
            )
        )
        return True


class _Unscaled:
    """Statistics of scaled gradients, brought back to the gradients' own scale."""

    def __init__(self, pending: PendingStatistics, scale: torch.Tensor, overflow: torch.Tensor | None) -> None:
        self._pending = pending
        self._scale = scale.detach().clone()
        self._overflow = overflow.detach().clone() if overflow is not None else None

    def result(self) -> NDArray[np.float64] | None:
        matrix = self._pending.result()
        if self._overflow is not None and float(self._overflow) > 0:
            return None
        matrix[:, len(COUNT_COLUMNS) :] /= float(self._scale)
        return matrix
