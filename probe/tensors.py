"""Measures the tensors of a step: activations as they pass, parameters and gradients at the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stepwatch.probe.capture import ModelCapture, Origin, Tap
from stepwatch.probe.collections import CollectionRegistry
from stepwatch.probe.derived import DerivedQuantities
from stepwatch.probe.guard import GradientGuard, Watched
from stepwatch.probe.mode_keys import TRAINING
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.statistics import PendingStatistics, measure, unsupported
from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.schema import COUNT_COLUMNS


class Membership(NamedTuple):
    """Collections of a tensor, and whether any that is saved wants it whole."""

    collections: tuple[str, ...]
    raw: bool


class _Passing(NamedTuple):
    """A tensor that passes a tap."""

    name: str
    membership: Membership


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
        self._raw = self._any_raw = raw
        self._tell = describe
        self._note = note
        self._derived = DerivedQuantities()
        self._described: set[str] = set()
        self._memberships: dict[tuple[str, Origin], Membership] = {}
        self._passing: dict[Tap, list[_Passing]] = {}
        self._selections: dict[frozenset[str], _Selection] = {}
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._guard: GradientGuard | None = None
        self._listening = False
        self._hooked = False

    def add_model(self, capture: ModelCapture) -> None:
        """Record this model too."""
        self.models.append(capture)
        self._selections.clear()
        self._guard = None

    def arm(self, *, first: bool) -> None:
        """The coming forward pass is recorded; in the first one the order of modules is learnt."""
        self._listening = self._hooked = True
        for capture in self.models:
            if first:
                capture.watch_order()
            capture.arm()

    def pause(self) -> None:
        """Forward passes are not looked at until :meth:`arm`."""
        if self._listening:
            self._listening = False
            for capture in self.models:
                capture.pause()

    def disarm(self) -> None:
        """The same, for longer: the hooks in the modules are removed."""
        if self._hooked:
            self._listening = self._hooked = False
            for capture in self.models:
                capture.disarm()

    def intern(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The one tuple object for these names."""
        return self._names.setdefault(names, names)

    def see_call(self, record: OpenRecord, tap: Tap, module: nn.Module, tensors: Sequence[torch.Tensor]) -> None:
        """Tensors of a module call."""
        known = self._passing.setdefault(tap, [])
        first = tap.seen
        tap.seen += len(tensors)
        if tap.seen > len(known):
            names = tap.names(len(known), tap.seen - len(known))
            known += [_Passing(name, self._members(name, tap.origin)) for name in names]
        for index, tensor in enumerate(tensors, first):
            name, membership = known[index]
            if not record.due.isdisjoint(membership.collections):
                self._add(record, name, tensor, tap.origin, membership)
        if tap.is_output and tensors and record.mode in TRAINING:
            self._derived.see_output(record, known[first].name, module, tensors[0])

    def see_tensor(self, record: OpenRecord, name: str, tensor: torch.Tensor, origin: Origin) -> None:
        """One tensor, if any of its collections is due."""
        member = self._members(name, origin)
        if not record.due.isdisjoint(member.collections):
            self._add(record, name, tensor, origin, member)

    def _add(self, record: OpenRecord, name: str, tensor: torch.Tensor, origin: Origin, membership: Membership) -> None:
        if name not in self._described and not self._describe(name, tensor, origin):
            return
        if not record.sheet.add(name, tensor):
            record.add_statistics([name], measure([tensor.detach()]))
        if membership.raw:
            record.add_value(name, tensor)

    def see_labels(self, record: OpenRecord, name: str, loss: nn.Module, inputs: Sequence[Any]) -> None:
        """Derived quantities of what a loss module was given."""
        self._derived.see_labels(record, name, loss, inputs)

    def parameter_ids(self) -> set[int]:
        """``id`` of every parameter of the models."""
        return {id(parameter) for capture in self.models for parameter in capture.root.parameters()}

    def see_loss(self, record: OpenRecord, name: str, loss: torch.Tensor, module_type: str | None) -> None:
        """A loss, whenever it was computed."""
        if name not in self._described:
            self._describe(name, loss, Origin(("losses",), None, module_type))
        record.add_loss(name, loss)

    def glance(self, record: OpenRecord, step_seconds: float) -> bool:
        """Look at a few gradients of a step that is not saved; whether they are finite, as far as that tells.

        Args:
            record: takes their statistics.
            step_seconds: how long the step before took.
        """
        if self._guard is None:
            gradients = self._select(self._registry.included).gradients.values()
            self._guard = GradientGuard([Watched(entry.name, entry.tensor) for entry in gradients])
        glance = self._guard.look(step_seconds)
        if glance is None:
            return False
        if glance.names and not record.has_statistics():  # of several optimizers the first one's
            record.add_statistics(glance.names, glance.statistics)
        return True

    def see_update(
        self, record: OpenRecord, *, weights: bool, held: set[int] | None, gradients: bool, optimizer: Any
    ) -> bool:
        """Parameters as they are before the update, and the gradients that the optimizer is given.

        Gradients are accumulated, clipped and unscaled. An optimizer that unscales by itself (the fused ones,
        under a GradScaler) holds the scale; what is recorded is divided by it, and nothing is recorded when the
        scaler found an overflow.

        Args:
            weights, gradients: which of them.
            held: ``id`` of the parameters whose gradients are meant; None for all of them.
            optimizer: whose step it is.

        Returns:
            Whether weights and gradients are finite, as far as that is known on the host.
        """
        selection = self._select(record.due)
        pairs: list[tuple[_Parameter, torch.Tensor]] = []
        if weights:
            pairs += [(entry, entry.tensor) for entry in selection.weights]
        if gradients:
            given = [
                (entry, gradient)
                for key, entry in selection.gradients.items()
                if (held is None or key in held) and (gradient := entry.tensor.grad) is not None
            ]
            scale = getattr(optimizer, "grad_scale", None)
            if scale is None:
                pairs += given
            else:
                overflow = getattr(optimizer, "found_inf", None)
                self._measure(record, given, lambda pending: _Unscaled(pending, scale, overflow))
        broken = record.sheet.broken
        left = record.sheet.add_all([entry.name for entry, _ in pairs], [tensor for _, tensor in pairs])
        if left:
            self._measure(record, [pairs[index] for index in left])
        finite = record.sheet.broken == broken
        if self._any_raw:
            others = set(left or ())
            for index, (entry, tensor) in enumerate(pairs):
                if entry.raw and index not in others:
                    record.add_value(entry.name, tensor)
        return finite

    def _measure(
        self,
        record: OpenRecord,
        pairs: list[tuple[_Parameter, torch.Tensor]],
        wrap: Callable[[PendingStatistics], Any] | None = None,
    ) -> None:
        """Measure what no compiled code reads where it lies."""
        names, tensors = [], []
        for entry, tensor in pairs:
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

    def _select(self, due: frozenset[str]) -> _Selection:
        selection = self._selections.get(due)
        if selection is None:
            selection = self._selections[due] = _Selection([], {})
            for capture in self.models:
                for name, parameter, origin in capture.parameters():
                    for tensor_name, is_gradient in ((name, False), (f"gradient/{name}", True)):
                        member = self._members(tensor_name, origin)
                        if due.isdisjoint(member.collections):
                            continue
                        if not self._describe(tensor_name, parameter, origin):
                            continue
                        entry = _Parameter(tensor_name, parameter, member.raw)
                        if is_gradient:
                            selection.gradients[id(parameter)] = entry
                        else:
                            selection.weights.append(entry)
        return selection

    def _members(self, name: str, origin: Origin) -> Membership:
        key = (name, origin)
        found = self._memberships.get(key)
        if found is None:
            collections = self._registry.of_tensor(name, origin.collections)
            configs = [collection.reduction_config for collection in self._registry.saved(collections)]
            raw = any(config.save_raw_tensor if config else self._raw for config in configs)
            found = self._memberships[key] = Membership(collections, raw)
            self._any_raw |= raw
        return found

    def _describe(self, name: str, tensor: torch.Tensor, origin: Origin) -> bool:
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
                shards=_shards_of(tensor),
                order=max((capture.order_of(origin.module) for capture in self.models), default=0),
            )
        )
        return True


def _shards_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """Ranks that hold the shards of a distributed tensor, this one's replica of it; empty for any other."""
    mesh, placements = getattr(tensor, "device_mesh", None), getattr(tensor, "placements", ())
    if mesh is None or not any(placement.is_shard() for placement in placements):
        return ()
    here = mesh.get_coordinate()
    along = tuple(
        slice(None) if placement.is_shard() else place for placement, place in zip(placements, here, strict=True)
    )
    return tuple(sorted(mesh.mesh[along].flatten().tolist()))


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
