"""Which tensors a model has, under which names, and the forward hooks that see them go by."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from stepwatch.probe.collections import CollectionKeys, CollectionRegistry, collections_of_module_tensor

_WRAPPER_SEGMENT = re.compile(r"(?:^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)")
_PROBED_INDICES = range(4)


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """Where a tensor comes from: the collections it has by its module, and that module."""

    collections: tuple[str, ...]
    module: str | None
    module_type: str | None


def flatten(value: Any) -> Iterator[torch.Tensor]:
    """Tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from flatten(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from flatten(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from flatten(getattr(value, field.name, None))


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside DataParallel, DistributedDataParallel and ``torch.compile``."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def is_compiled(model: nn.Module) -> bool:
    """Whether forward passes of the model run as a compiled graph, in which module hooks see nothing."""
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


class ModelCapture:
    """One root model: names and hooks.

    Args:
        model: the module that the script calls; may be wrapped.
        registry: tells what is saved.
        on_tensors: called with (names, tensors, origin, module, is_output) for the tensors of a module
            call that are to be saved.
        prefix: stands for the root's class name in tensor names.
    """

    def __init__(
        self,
        model: nn.Module,
        registry: CollectionRegistry,
        on_tensors: Callable[[list[str], list[torch.Tensor], Origin, nn.Module, bool], None],
        prefix: str | None = None,
    ) -> None:
        self.entry = model
        self.root = unwrap(model)
        self.compiled = is_compiled(model)
        self.prefix = prefix or type(self.root).__name__
        self._registry = registry
        self._on_tensors = on_tensors
        self._handles: list[Any] = []
        self._order_handles: list[Any] = []
        self._order: dict[str, int] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._watched = None if self.compiled else self._find_watched()

    def parameters(self) -> list[tuple[str, nn.Parameter, Origin]]:
        """(name, parameter, origin) of every parameter, shared ones once, under their first name."""
        modules = dict(self.root.named_modules())
        found = []
        for path, parameter in self.root.named_parameters():
            owner, _, _ = path.rpartition(".")
            clean = _WRAPPER_SEGMENT.sub("", path).lstrip(".")
            clean_owner, _, _ = clean.rpartition(".")
            origin = Origin((), clean_owner, type(modules[owner]).__name__)
            found.append((f"{self.prefix}_{clean}", parameter, origin))
        return found

    def order_of(self, module: str | None) -> int:
        """Position of a module in the first forward pass; modules not called come after all others."""
        return self._order.get(module or "", len(self._order))

    def watch_order(self) -> None:
        """Learn the order in which modules run, from the next forward pass."""
        if self.compiled:
            self._order = {path: i for i, (path, _) in enumerate(self._modules())}
            return
        for path, module in self._modules():
            self._order_handles.append(module.register_forward_pre_hook(self._make_order_hook(path)))

    def arm(self) -> None:
        """Install the forward hooks: the coming step is saved. A step without them costs nothing."""
        self._counts.clear()
        if self._handles or not self._watched:
            return
        for path, module, inputs, outputs in self._watched:
            hook = self._make_hook(path, type(module).__name__, inputs, outputs)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def disarm(self) -> None:
        """Remove the forward hooks."""
        for handle in (*self._handles, *self._order_handles):
            handle.remove()
        self._handles.clear()
        self._order_handles.clear()

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        for path, module in self.root.named_modules():
            yield _WRAPPER_SEGMENT.sub("", path).lstrip("."), module

    def _find_watched(self) -> list[tuple[str, nn.Module, bool, bool]]:
        watched = []
        for path, module in self._modules():
            inputs = self._wanted(path, type(module).__name__, "input")
            outputs = self._wanted(path, type(module).__name__, "output")
            if inputs or outputs:
                watched.append((path, module, inputs, outputs))
        return watched

    def _wanted(self, path: str, module_type: str, direction: str) -> bool:
        origin = self._origin(path, module_type, direction)
        name = path or self.prefix
        return any(
            self._registry.saved(self._registry.of_tensor(f"{name}_{direction}_{index}", origin.collections))
            for index in _PROBED_INDICES
        )

    def _origin(self, path: str, module_type: str, direction: str) -> Origin:
        by_type = collections_of_module_tensor(module_type, direction)
        if not path:
            by_type.append(CollectionKeys.INPUTS if direction == "input" else CollectionKeys.OUTPUTS)
        return Origin(tuple(by_type), path, module_type)

    def _make_order_hook(self, path: str) -> Callable[..., None]:
        def note_order(module: nn.Module, args: Any) -> None:
            if not torch.compiler.is_compiling():
                self._order.setdefault(path, len(self._order))

        return note_order

    def _make_hook(self, path: str, module_type: str, inputs: bool, outputs: bool) -> Callable[..., None]:
        name = path or self.prefix
        input_origin = self._origin(path, module_type, "input")
        output_origin = self._origin(path, module_type, "output")

        def see_call(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            # Under torch.compile this is traced: leave nothing in the graph.
            if torch.compiler.is_compiling():
                return
            if inputs:
                self._emit(name, "input", (args, kwargs), input_origin, module)
            if outputs:
                self._emit(name, "output", output, output_origin, module)

        return see_call

    def _emit(self, name: str, direction: str, value: Any, origin: Origin, module: nn.Module) -> None:
        tensors = list(flatten(value))
        first = self._counts.get((name, direction), 0)
        self._counts[name, direction] = first + len(tensors)
        names = [f"{name}_{direction}_{first + k}" for k in range(len(tensors))]
        if tensors:
            self._on_tensors(names, tensors, origin, module, direction == "output")
