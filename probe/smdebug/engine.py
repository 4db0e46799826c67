"""Our hook with smdebug's idea of a step and of what is saved at one.

A step is a forward pass. Weights are those before it, gradients those of one backward pass as autograd makes them.
What is saved of a tensor is what its configuration says, under the names and with the numbers that smdebug would have
saved; our statistics are recorded beside.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stepwatch.probe import hook
from stepwatch.probe.capture import ModelCapture, Origin, flatten
from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.observer import guarded
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.smdebug import state_store
from stepwatch.probe.smdebug.collection import SCALAR_COLLECTIONS, CollectionManager
from stepwatch.probe.smdebug.configuration import ReductionConfig, SaveConfig
from stepwatch.probe.smdebug.errors import InvalidCollectionConfiguration
from stepwatch.probe.smdebug.phases import StepPhases
from stepwatch.probe.statistics import measure
from stepwatch.probe.store.schema import REDUCTION_QUANTITY, SHAPE_QUANTITY
from stepwatch.probe.store.smdebug.importing import write_origin
from stepwatch.probe.tensors import Membership, TensorRecorder

_WITHOUT_GRADIENTS = (ModeKeys.EVAL, ModeKeys.PREDICT)
_OPERATIONS = {"variance": torch.Tensor.var, **{n: getattr(torch.Tensor, n) for n in ("min", "max", "mean", "std")}}
_OPERATIONS |= {"sum": torch.Tensor.sum, "prod": torch.Tensor.prod}
_OPERATIONS |= {"l1": functools.partial(torch.Tensor.norm, p=1), "l2": functools.partial(torch.Tensor.norm, p=2)}
_NO_ORIGIN = Origin((), None, None)


class Engine(hook.Hook):
    """Records as smdebug would.

    Args:
        out_dir: directory of the run.
        manager: the collections; they may change until the first forward pass.
        included: names of those that are saved; ``all`` saves every one.
        save_config: schedule of collections that have none of their own.
        reduction_config: what is saved of tensors whose collections do not say.
        every_worker: whether all ranks write, or the first only.
        phases: what profiles the phases of steps, where SageMaker's configuration enables it.

    Attributes:
        mode_steps: steps of each mode that has begun, counted from 0; in mode GLOBAL the global step.
    """

    def __init__(
        self,
        out_dir: str,
        manager: CollectionManager,
        included: Iterable[str],
        save_config: SaveConfig,
        reduction_config: ReductionConfig,
        *,
        every_worker: bool,
        phases: StepPhases | None = None,
    ) -> None:
        self._phases = phases
        self._manager = manager
        self._prepared = False
        self._ending = False
        self._waiting_scalars: dict[str, float] = {}
        self._waiting_tensors: dict[str, tuple[torch.Tensor, str]] = {}
        self._seen: set[str] = set()
        self._found: set[str] = set()
        self.mode_steps: dict[ModeKeys, int] = {}
        self._states = state_store.StateStore()
        self._resumed = self._states.get_last_saved_state()
        self._last_saved: int | None = None
        self._default_schedule = save_config
        super().__init__(
            out_dir,
            include_collections=list(included),
            save_config=save_config,
            reduction_config=reduction_config,
            ranks="all" if every_worker else "first",
        )
        self._tensors: _Recorder = _Recorder(self._registry, reduction_config, self._describe, self._writer.note)
        self._mode = ModeKeys.GLOBAL
        self._note_collections()

    # -- what a script says ---------------------------------------------------------------------------

    def watch_model(self, model: nn.Module, name: str | None = None) -> None:
        """Record this model as well, and the gradients of its parameters as they come."""
        super().watch_model(model, name)
        for parameter_name, parameter, origin in self._tensors.models[-1].parameters():
            if parameter.requires_grad:
                see = functools.partial(self._see_gradient, f"gradient/{parameter_name}", origin)
                self._handles.append(parameter.register_hook(see))  # type: ignore[no-untyped-call]

    @guarded
    def set_mode(self, mode: ModeKeys) -> None:
        """What the coming forward passes are; the open step stays as it is."""
        self._mode = mode

    @guarded
    def save_scalar(self, name: str, value: float) -> None:
        """Record a number now, and as a tensor at the end of the step that is saved next."""
        self._current().add_scalar(name, value)
        self._waiting_scalars[name] = value

    @guarded
    def see_output(self, name: str, value: torch.Tensor) -> None:
        """The output of a function that is no module, of a loss say."""
        record = self._working()
        if "losses" in self._registry.of_tensor(name):
            self._add_loss(record, name, value, None)
        self._see(record, name, value, _NO_ORIGIN)

    @guarded
    def save_tensor(self, name: str, value: torch.Tensor, collection: str) -> None:  # type: ignore[override]
        """Keep a tensor until something of a saved step is seen, and save it whole then."""
        self._waiting_tensors[name] = (value.detach().clone(), collection)

    def flush(self) -> None:
        """Return when every step that has ended is on disk."""
        self._writer.flush()

    def close(self, status: str = "finished", reason: str = "") -> None:
        """Write out everything; numbers that wait for a step to be saved go with the last."""
        self._ending = True
        super().close(status, reason)
        if self._phases:
            self._phases.close()
            self._phases = None

    # -- the step -------------------------------------------------------------------------------------

    @guarded
    def _begin_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._prepared:
            self._prepared = True
            self._prepare()
        if self._states.enabled and self.rank == 0 and self.mode_steps:
            self._note_state()
        super()._begin_forward(module, args, kwargs)
        record = self._steps.record
        if record is not None:
            self.mode_steps |= {record.mode: record.mode_step, ModeKeys.GLOBAL: record.step}
            if self._phases:
                self._phases.step_begins(record.mode, record.mode_step, record.step)
        if record is not None and record.due and record.forwards == 1:
            for capture in self._tensors.models:
                for name, parameter, origin in capture.parameters():
                    self._see(record, name, parameter, origin)

    @guarded
    def forward_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward pass of a watched model returns this."""
        super().forward_ends(module, args, output)
        if self._phases:
            self._phases.forward_ended()
        self._flush_tensors()

    def _start(self) -> None:
        super()._start()
        if self._resumed:
            begun = state_store.mode_steps_of(self._resumed)
            latest = self._resumed[state_store.SEEN]
            self._steps.start_at(latest + 1, {mode: begun.get(mode, latest) + 1 for mode in ModeKeys})

    def _first_step(self) -> int:
        return self._resumed[state_store.SEEN] + 1 if self._resumed else super()._first_step()

    def _note_state(self) -> None:
        """Write down where the job stood, if it has written a checkpoint since the last step."""
        if self._states.is_checkpoint_updated():
            run = 1 + self._resumed[state_store.RUN] if self._resumed else 0
            record = self._steps.record
            saved = record.step if record is not None and record.due else self._last_saved
            steps = {mode.name: step for mode, step in self.mode_steps.items()}
            state = {state_store.RUN: run, state_store.SAVED: saved, state_store.MODE_STEPS: steps}
            self._states.update_state({**state, state_store.SEEN: self.mode_steps[ModeKeys.GLOBAL]})

    def _see_gradient(self, name: str, origin: Origin, gradient: torch.Tensor) -> None:
        if not torch.compiler.is_compiling():
            self._record_gradient(name, origin, gradient)

    @guarded
    def _record_gradient(self, name: str, origin: Origin, gradient: torch.Tensor) -> None:
        record = self._steps.record
        if record is not None and record.due:
            if record.mode not in _WITHOUT_GRADIENTS:
                self._see(record, name, gradient, origin)
            self._flush_tensors()

    @guarded
    def _see_loss(self, module: nn.Module, args: Any, output: Any) -> None:
        super()._see_loss(module, args, output)
        record = self._working()
        kind = type(module).__name__
        for direction, tensors in (("input", args), ("output", output)):
            for index, tensor in enumerate(flatten(tensors)):
                self._see(record, f"{kind}_{direction}_{index}", tensor, Origin((), None, kind))

    def _add_loss(self, record: OpenRecord, name: str, loss: torch.Tensor, module_type: str | None) -> None:
        self._tensors.see_loss(record, name, loss, module_type)  # one that is not finite changes no schedule

    def _see(self, record: OpenRecord, name: str, tensor: torch.Tensor, origin: Origin) -> None:
        if record.due and name not in self._seen:
            self._seen.add(name)
            self._tensors.see_tensor(record, name, tensor.detach(), origin)
            if name not in self._found:
                self._found.add(name)
                for membership in self._tensors.memberships(name, origin):
                    self._manager.get(membership).tensor_names.add(name)

    def _flush_tensors(self) -> None:
        record = self._steps.record
        if record is None or not record.due or not self._waiting_tensors:
            return
        for name, (tensor, collection) in self._waiting_tensors.items():
            self._tensors.see_whole(record, name, tensor, collection)
        self._waiting_tensors.clear()

    def _submit(self, record: OpenRecord) -> None:
        self._seen.clear()
        if self._waiting_scalars and (record.due or self._ending):
            record.due = record.due or self._registry.included  # what is not due is not written
            for name, value in self._waiting_scalars.items():
                self._tensors.see_whole(record, name, torch.tensor([value], dtype=torch.float64), None)
            self._waiting_scalars.clear()
        self._last_saved = record.step if record.due else self._last_saved
        super()._submit(record)

    # -- collections ----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """The first forward pass: what the collections are now, they stay."""
        names = {
            module: path or capture.prefix
            for capture in self._tensors.models
            for path, module in capture.root.named_modules()
        }
        for collection in self._manager.collections.values():
            collection.resolve_modules(names)
            if isinstance(collection.save_config, SaveConfig):
                collection.save_config.merge_default_save_config(self._default_schedule)
            if collection.name in SCALAR_COLLECTIONS:
                collection.reduction_config = ReductionConfig(save_raw_tensor=True)
            self._registry.add(collection)
        if "all" in self._registry.included:
            for name in self._manager.collections:
                self._registry.include(name)
        for name, known in self._manager.collections.items():
            if name not in ("default", "all") and not known.include_regex and not known.tensor_names:
                self._writer.note(str(InvalidCollectionConfiguration(name)))
        self._tensors.models[:] = [
            ModelCapture(each.entry, self._registry, self._see_call, self._failed, each.prefix)
            for each in self._tensors.models
        ]
        self._note_collections()

    def _note_collections(self) -> None:
        if self.rank == 0:
            write_origin(self.out_dir, {"workers": None, "collections": self._manager.describe()})


class _Recorder(TensorRecorder):
    """Adds what smdebug's configurations ask for beside our statistics: reductions as it makes them, and shapes."""

    def __init__(self, registry: Any, default: ReductionConfig, describe: Any, note: Any) -> None:
        super().__init__(registry, raw=default.save_raw_tensor, describe=describe, note=note)
        self._default = default
        self._wanted: dict[str, tuple[list[str], bool]] = {}

    def _add(self, record: OpenRecord, name: str, tensor: torch.Tensor, origin: Origin, membership: Membership) -> None:
        super()._add(record, name, tensor, origin, membership)
        if name not in self._described:
            return
        if name not in self._wanted:
            self._wanted[name] = self._configured(membership.collections)
        reductions, shape = self._wanted[name]
        for reduction in reductions:
            value = reduce(tensor, reduction)
            if value is None:
                self._note(f"{reduction} of {name} is not saved: it is not defined for {tensor.dtype}")
            else:
                record.add_derived(name, f"{REDUCTION_QUANTITY}{reduction}", functools.partial(_vector, value))
        if shape:
            size = np.array(tensor.shape, np.float64)
            record.add_derived(name, SHAPE_QUANTITY, lambda: size)

    def memberships(self, name: str, origin: Origin) -> Sequence[str]:
        """Names of the collections that a tensor is in."""
        return self._members(name, origin).collections

    def see_whole(self, record: OpenRecord, name: str, tensor: torch.Tensor, collection: str | None) -> None:
        """A tensor of the script's own, saved whole whatever is configured."""
        if collection is not None:
            self._registry.get(collection).tensor_names.add(name)
        if not self._describe(name, tensor, _NO_ORIGIN):
            return
        if not record.sheet.add(name, tensor):
            record.add_statistics([name], measure([tensor]))
        record.add_value(name, tensor)

    def _configured(self, memberships: Sequence[str]) -> tuple[list[str], bool]:
        """Reductions that collections of a tensor want, and whether one wants its shape."""
        reductions: dict[str, None] = {}
        shape = False
        for collection in self._registry.saved(memberships):
            config = collection.reduction_config or self._default
            if collection.name not in SCALAR_COLLECTIONS and isinstance(config, ReductionConfig):
                reductions.update(dict.fromkeys(config.names()))
                shape |= config.save_shape
        return list(reductions), shape


def reduce(tensor: torch.Tensor, name: str) -> torch.Tensor | None:
    """A reduction as smdebug makes it when it saves: deviations over n - 1, norms of all entries."""
    if tensor.numel() < 2 and name.removeprefix("abs_") in ("std", "variance"):
        return torch.tensor(torch.nan)  # as torch has it, without its warning
    entries = tensor.detach().abs() if name.startswith("abs_") else tensor.detach()
    try:
        found: torch.Tensor = _OPERATIONS[name.removeprefix("abs_")](entries)
        return found
    except RuntimeError:
        return None  # of whole numbers there is no mean


def _vector(value: torch.Tensor) -> NDArray[np.float64]:
    return np.array([float(value)])
