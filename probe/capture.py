"""Which tensors a model has, under which names, and the forward hooks that see them go by."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from stepwatch.probe.attached import Attached
from stepwatch.probe.collections import CollectionKeys, CollectionRegistry, collections_of_module_tensor

_WRAPPER_SEGMENT = re.compile(r"(?:^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)")
_PROBED_INDICES = 4


class Origin(NamedTuple):
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


def class_name(module: nn.Module) -> str:
    """Name of the user's class of a module; ``fully_shard`` puts one of its own before it."""
    kind = type(module)
    return (kind.__bases__[-1] if kind.__bases__[0].__name__ == "FSDPModule" else kind).__name__


def is_compiled(model: nn.Module) -> bool:
    """Whether forward passes of the model run as a compiled graph, in which module hooks see nothing."""
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


class Tap:
    """The inputs or the outputs of one module, as its calls go by.

    Attributes:
        module: the module.
        origin: collections and module of its tensors.
        is_output: whether these are its outputs.
        seen: tensors that passed since the capture was armed; they are numbered on through several calls.
    """

    def __init__(self, path: str, direction: str, module: nn.Module, origin: Origin) -> None:
        self.module = module
        self.origin = origin
        self.is_output = direction == "output"
        self.seen = 0
        self._stem = f"{path}_{direction}_"
        self._names: list[str] = []

    def names(self, first: int, count: int) -> list[str]:
        """Names of so many tensors from that number on."""
        for index in range(len(self._names), first + count):
            self._names.append(f"{self._stem}{index}")
        return self._names[first : first + count]


class ModelCapture:
    """One root model: names and hooks.

    Args:
        model: the module that the script calls; may be wrapped.
        registry: tells what is saved.
        on_tensors: called with the tap, the module and the tensors of a call that passed the tap.
        failed: told of an error in a hook.
        prefix: stands for the root's class name in tensor names.
    """

    def __init__(
        self,
        model: nn.Module,
        registry: CollectionRegistry,
        on_tensors: Callable[[Tap, nn.Module, Sequence[torch.Tensor]], None],
        failed: Callable[[str, Exception], None],
        prefix: str | None = None,
    ) -> None:
        self.entry = model
        self.root = unwrap(model)
        self.compiled = is_compiled(model)
        self.prefix = prefix or class_name(self.root)
        self._registry = registry
        self._on_tensors = on_tensors
        self._failed = failed
        self._handles: list[Any] = []
        self._order_handles: list[Any] = []
        self._order: dict[str, int] = {}
        self._armed = False
        self._taps: list[Tap] = [] if self.compiled else list(self._find_taps())

    def parameters(self) -> list[tuple[str, nn.Parameter, Origin]]:
        """(name, parameter, origin) of every parameter, shared ones once, under their first name."""
        modules = dict(self.root.named_modules())
        found = []
        for path, parameter in self.root.named_parameters():
            owner, _, _ = path.rpartition(".")
            clean = _WRAPPER_SEGMENT.sub("", path).lstrip(".")
            clean_owner, _, _ = clean.rpartition(".")
            origin = Origin((), clean_owner, class_name(modules[owner]))
            found.append((f"{self.prefix}_{clean}", parameter, origin))
        return found

    def order_of(self, module: str | None) -> int:
        """Position of a module in the first forward pass; modules not called come after all others."""
        return self._order.get(module or "", len(self._order))

    def ran(self, module: str | None) -> bool:
        """Whether a module ran in the first forward pass, as far as that was watched."""
        return not self._order or (module or "") in self._order

    def watch_order(self) -> None:
        """Learn the order in which modules run, from the next forward pass."""
        if self._order_handles:
            return
        if self.compiled:
            self._order = {path: i for i, (path, _) in enumerate(self.modules())}
            return
        for path, module in self.modules():
            note = functools.partial(self._note_order, path)
            self._order_handles.append(module.register_forward_pre_hook(Attached(note, self._failed)))

    def arm(self) -> None:
        """The coming forward pass is saved: install the forward hooks, or begin to listen to them again."""
        for tap in self._taps:
            tap.seen = 0
        self._armed = True
        if not self._handles:
            for tap in self._taps:
                register = tap.module.register_forward_hook
                if tap.is_output:
                    see = functools.partial(self._see_output, tap)
                    self._handles.append(register(Attached(see, self._failed)))
                else:
                    see = functools.partial(self._see_inputs, tap)
                    self._handles.append(register(Attached(see, self._failed), with_kwargs=True))

    def pause(self) -> None:
        """Do not listen until :meth:`arm`, which may be soon."""
        self._armed = False
        for handle in self._order_handles:
            handle.remove()
        self._order_handles.clear()

    def disarm(self) -> None:
        """Remove the forward hooks: a step without them costs nothing."""
        self.pause()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """(path, module) of every module of the root, itself first, without the names of wrappers."""
        for path, module in self.root.named_modules():
            yield _WRAPPER_SEGMENT.sub("", path).lstrip("."), module

    def _find_taps(self) -> Iterator[Tap]:
        for path, module in self.modules():
            for direction in ("input", "output"):
                tap = Tap(path or self.prefix, direction, module, self._origin(path, class_name(module), direction))
                if self._wanted(tap):
                    yield tap

    def _wanted(self, tap: Tap) -> bool:
        return any(
            self._registry.saved(self._registry.of_tensor(name, tap.origin.collections))
            for name in tap.names(0, _PROBED_INDICES)
        )

    def _origin(self, path: str, module_type: str, direction: str) -> Origin:
        by_type = collections_of_module_tensor(module_type, direction)
        if not path:
            by_type.append(CollectionKeys.INPUTS if direction == "input" else CollectionKeys.OUTPUTS)
        return Origin(tuple(by_type), path, module_type)

    def _note_order(self, path: str, module: nn.Module, args: Any) -> None:
        self._order.setdefault(path, len(self._order))

    def _see_output(self, tap: Tap, module: nn.Module, args: Any, output: Any) -> None:
        if self._armed:
            self._on_tensors(tap, module, (output,) if isinstance(output, torch.Tensor) else list(flatten(output)))

    def _see_inputs(self, tap: Tap, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._armed:
            self._on_tensors(tap, module, list(flatten((args, kwargs))))
