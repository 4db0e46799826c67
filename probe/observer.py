"""What happens in a step, as torch tells of it: passes, losses and updates, brought into the open record."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from threading import RLock
from time import perf_counter_ns
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import nn

from stepwatch.probe import lifecycle
from stepwatch.probe.agreement import GradientAgreement
from stepwatch.probe.allocator import AllocatorStatistics
from stepwatch.probe.arguments import learning_rates, loss_name
from stepwatch.probe.capture import Tap, flatten
from stepwatch.probe.collections import CollectionRegistry
from stepwatch.probe.collectives import BackwardWait
from stepwatch.probe.flops import StepWork
from stepwatch.probe.governor import Governor
from stepwatch.probe.inputs import InputWatch
from stepwatch.probe.loop import TrainingLoop
from stepwatch.probe.loss_inputs import LossInputs
from stepwatch.probe.mode_keys import TRAINING, ModeKeys
from stepwatch.probe.recorder import OpenRecord
from stepwatch.probe.roles import ParameterRoles
from stepwatch.probe.schedule import SaveConfig
from stepwatch.probe.steps import StepTracker
from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.schema import SKIPPED_SCALAR
from stepwatch.probe.store.silent import SilentWriter
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.probe.symmetry import UnitSymmetry
from stepwatch.probe.tensors import TensorRecorder
from stepwatch.probe.updates import UpdateSample

log = logging.getLogger("stepwatch")

P = ParamSpec("P")
R = TypeVar("R")
Observer = TypeVar("Observer", bound="StepObserver")

_SKIPS_OF_A_SCALER = 16  # from its usual 65536 down to 1


def guarded(method: Callable[Concatenate[Observer, P], R]) -> Callable[Concatenate[Observer, P], R | None]:
    """Part of the hook inside the training step: its time is counted, its errors never escape."""

    @functools.wraps(method)
    def call(self: Observer, *args: P.args, **kwargs: P.kwargs) -> R | None:
        if self._closed:
            return None
        began = perf_counter_ns()
        try:
            with self._lock:
                return method(self, *args, **kwargs)
        except Exception as error:
            self._failed(method.__name__, error)
            return None
        finally:
            self._steps.clock.hook_ns += perf_counter_ns() - began

    return call  # type: ignore[return-value]


class _UnplacedLoss(NamedTuple):
    """A loss for which no optimizer has stepped yet."""

    name: str
    output: int
    loss: torch.Tensor
    module_type: str | None


class StepObserver:
    """Brings what torch tells of a step into records, and hands each over when its step is done.

    Args:
        registry: the collections that are saved.
        schedule: which steps are saved.
        governor: chooses where the schedule names no interval.
        writer: takes the records.
        raw: whether whole tensors are saved beside statistics.
    """

    def __init__(
        self,
        registry: CollectionRegistry,
        schedule: SaveConfig,
        governor: Governor,
        writer: TraceWriter | SilentWriter,
        *,
        raw: bool,
    ) -> None:
        self._lock = RLock()
        self._closed = False
        self._failures: set[str] = set()
        self._optimizers: list[torch.optim.Optimizer] = []
        self._optimizer_steps: dict[torch.optim.Optimizer, int] = {}
        self._loss_modules: set[nn.Module] = set()
        self._loss_name = "loss"
        self._mode: ModeKeys | None = None
        self._started = False
        self._in_backward = False
        self._skips = 0
        self._unplaced: list[_UnplacedLoss] = []
        self._step_seconds = 0.0
        self._loop = TrainingLoop()
        self._writer = writer
        self._steps = StepTracker(registry, schedule, governor, self._submit)
        self._backward_wait = BackwardWait(self._steps.clock)
        self._work = StepWork(self._failed)
        self._allocator = AllocatorStatistics()
        self._inputs = InputWatch(self._steps.clock, self._failed)
        self._loss_inputs = LossInputs()
        self._tensors = TensorRecorder(registry, raw=raw, describe=self._describe, note=writer.note)
        self._roles = ParameterRoles(self._tensors.models, self._optimizers)
        self._symmetry = UnitSymmetry(self._tensors.models)
        self._update = UpdateSample(self._tensors.models)
        self._agreement = GradientAgreement(self._update)

    def steps_of(self, optimizer: torch.optim.Optimizer) -> int:
        """How often this optimizer was seen to step."""
        return self._optimizer_steps.get(optimizer, 0)

    @guarded
    def _begin_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._started:
            self._start()
        mode = self._mode or (ModeKeys.TRAIN if module.training else ModeKeys.EVAL)
        record = self._steps.forward_in(mode)
        if record.forwards == 0:
            if record.due:
                self._tensors.arm(first=not self._optimizer_steps)
            else:
                self._tensors.disarm()
        elif not self._multiple_models:
            self._tensors.pause()  # activations are those of the first micro-batch
        self._inputs.forward_begins(record, module, args, kwargs)
        record.forwards += 1
        self._steps.clock.begin("forward_ns")

    @guarded
    def forward_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward pass of a watched model returns this."""
        self._steps.clock.end("forward_ns")
        if self._steps.record is not None:
            self._inputs.forward_ends(self._steps.record, output)
        if isinstance(output, torch.Tensor):
            return
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        record = self._steps.record
        if record is not None and isinstance(loss, torch.Tensor) and not loss.requires_grad:
            self._add_loss(record, "loss_output_0", loss, None)

    @guarded
    def _see_call(self, tap: Tap, module: nn.Module, tensors: Sequence[torch.Tensor]) -> None:
        record = self._steps.record
        if record is not None and not self._in_backward:  # where checkpointed activations are computed again
            self._tensors.see_call(record, tap, module, tensors)

    @guarded
    def _see_loss(self, module: nn.Module, args: Any, output: Any) -> None:
        record = self._working()
        module_type = type(module).__name__
        name = loss_name(module_type)
        losses = [output] if isinstance(output, torch.Tensor) else list(flatten(output))
        for index, loss in enumerate(losses):
            self._take_loss(record, name, index, loss, module_type)
        if record.due:
            self._loss_inputs.look(record, losses)
            if record.mode in TRAINING and record.backwards == 0:
                self._tensors.see_labels(record, f"{name}_input_1", module, args)

    @guarded
    def backward_begins(self, losses: list[torch.Tensor]) -> None:
        """A backward pass begins on these tensors; without a loss module they are the training loss."""
        record = self._working()
        record.backwards += 1
        self._loop.backward_begins()
        if record.due:
            self._loss_inputs.look(record, losses)
        if not self._loss_modules and len(losses) == 1 and losses[0].numel() == 1:
            self._take_loss(record, self._loss_name, 0, losses[0], None)
        self._in_backward = True
        self._steps.clock.begin("backward_ns")
        self._backward_wait.begins(losses)
        if self._work.active:
            self._work.backward_begins()

    @guarded
    def backward_ends(self) -> None:
        """The backward pass returned."""
        self._in_backward = False
        if self._work.active:
            self._work.backward_ends()
        self._backward_wait.ends()
        self._steps.clock.end("backward_ns")

    @guarded
    def scaler_skipped(self, optimizer: torch.optim.Optimizer) -> None:
        """A GradScaler left the update out: what led to it is no training step, unless that never ends."""
        record = self._steps.record
        if record is None or optimizer not in self._optimizers:
            return
        self._skips += optimizer is self._optimizers[0]
        record.add_scalar(SKIPPED_SCALAR, float(self._skips))
        self._place_losses(record, self._optimizers.index(optimizer))
        if self._skips < _SKIPS_OF_A_SCALER:
            record.drop_losses()
        elif optimizer is self._optimizers[-1]:
            self._steps.skipped()

    @guarded
    def _begin_update(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        record = self._record_of_update(optimizer)
        if self._mode is None:
            self._steps.turn_to_training(record)
        if record.forwards == 0 and not closure:
            for capture in self._tensors.models:
                self._writer.note(
                    f"{capture.prefix}: its forward pass was not seen (it was compiled after the hook was made, "
                    "or is called by another name): its activations are not recorded"
                )
        place = self._optimizers.index(optimizer)
        if self._unplaced:
            self._place_losses(record, place)
        for name, rate in learning_rates(optimizer, place):
            record.add_scalar(name, rate)
        if self._step_seconds and not (record.due or closure):
            scaled = getattr(optimizer, "grad_scale", None) is not None  # an overflow is how a scaler works
            if not (scaled or self._tensors.glance(record, self._step_seconds)):
                self._steps.see_finite(False)  # and from here on this step is saved
        if optimizer is self._optimizers[0] and not closure:
            self._agreement.look(record, optimizer)
        if record.due:
            weights = optimizer is self._optimizers[0]
            finite = self._see_update(record, optimizer, weights=weights, gradients=not closure)
            self._steps.see_finite(finite and record.finite)
            self._update.before(optimizer)
            if optimizer is self._optimizers[0]:
                self._symmetry.look(record)
        self._steps.clock.begin("optimizer_ns")

    @guarded
    def _end_update(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        self._steps.clock.end("optimizer_ns")
        record = self._steps.record
        if record is not None and record.due and closure:
            # those of the closure's last evaluation
            self._see_update(record, optimizer, weights=False, gradients=True)
        if record is not None:
            if record.due:
                self._update.after(record)
            self._loop.updated(record, optimizer, [capture.root for capture in self._tensors.models])
            if record.ended:
                self._steps.lengthened()
        self._optimizer_steps[optimizer] = self.steps_of(optimizer) + 1
        self._skips = 0
        self._inputs.release()
        if optimizer is self._optimizers[0]:
            self._tensors.pause()
            if self._work.active:
                self._count_work(record)
            self._steps.updated()

    def _count_work(self, record: OpenRecord | None) -> None:
        counted = self._work.step_ended([capture.root for capture in self._tensors.models])
        if record is not None:
            for name, amount in counted.items():
                record.add_scalar(name, amount)

    def _take_loss(
        self, record: OpenRecord, name: str, index: int, loss: torch.Tensor, module_type: str | None
    ) -> None:
        if len(self._optimizers) > 1 and record.mode in TRAINING:
            self._unplaced.append(_UnplacedLoss(name, index, loss.detach(), module_type))
        else:
            self._add_loss(record, f"{name}_output_{index}", loss, module_type)

    def _place_losses(self, record: OpenRecord, place: int) -> None:
        """Of several optimizers the one at that place is what these losses are for: a GAN's are not one series."""
        unplaced, self._unplaced = self._unplaced, []
        for each in unplaced:
            self._add_loss(record, f"{each.name}_output_{each.output + place}", each.loss, each.module_type)

    def _add_loss(self, record: OpenRecord, name: str, loss: torch.Tensor, module_type: str | None) -> None:
        self._tensors.see_loss(record, name, loss, module_type)
        if record.mode in TRAINING and not record.finite:
            self._steps.see_finite(False)
            if record.alarmed:
                self._inputs.look(record)

    def _see_update(
        self, record: OpenRecord, optimizer: torch.optim.Optimizer, *, weights: bool, gradients: bool
    ) -> bool:
        if gradients:
            self._roles.look(record, optimizer)
        held = None
        if gradients and len(self._optimizers) > 1:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if optimizer is self._optimizers[0]:
                others = {id(p) for each in self._optimizers for group in each.param_groups for p in group["params"]}
                held |= self._tensors.parameter_ids() - others  # gradients that no optimizer uses are shown once
        return self._tensors.see_update(record, weights=weights, held=held, gradients=gradients, optimizer=optimizer)

    @property
    def _multiple_models(self) -> bool:
        return len(self._tensors.models) > 1

    def _current(self, mode: ModeKeys | None = None) -> OpenRecord:
        if not self._started:
            self._start()
        models = self._tensors.models
        training = mode is not None or not models or models[0].root.training
        return self._steps.open(self._mode or (ModeKeys.TRAIN if training else ModeKeys.EVAL))

    def _working(self, mode: ModeKeys | None = None) -> OpenRecord:
        """The record that work belongs to: after an update a new one, even if no forward pass was seen."""
        record = self._steps.record
        if record is not None:
            if not record.ended:
                return record
            self._steps.finish()
        return self._current(mode)

    def _record_of_update(self, optimizer: torch.optim.Optimizer) -> OpenRecord:
        """Of several optimizers that step one after the other, all belong to the step that the first one ended."""
        record = self._steps.record
        if record is None or not record.ended or record.mode not in TRAINING or optimizer is self._optimizers[0]:
            return self._working(ModeKeys.TRAIN)
        return record

    def _start(self) -> None:
        """Before the first record: at which step does this attempt begin?"""
        self._started = True
        step = self._first_step()
        self._steps.start_at(step)
        self._writer.set_start_step(step)

    def _first_step(self) -> int:
        raise NotImplementedError

    def _describe(self, info: TensorInfo) -> None:
        self._writer.describe(info)

    def _submit(self, record: OpenRecord) -> None:
        record.add_timings(self._steps.clock.device.turn(self._steps.step, self._step_seconds))
        if record.timing:
            record.timing.update(self._allocator.at_step_end())
        if record.mode in TRAINING and record.timing:
            self._step_seconds = record.timing.get("duration_ns", 0) / 1e9
        self._writer.submit(record.close(self._tensors.intern))

    def _failed(self, where: str, error: Exception) -> None:
        self._writer.count("hook_errors")
        text = f"{where}: {lifecycle.describe_exception(type(error), error)}"
        if text not in self._failures:
            self._failures.add(text)
            self._writer.note(f"the hook failed in {text}")
            log.warning("the hook failed in %s; training goes on", text, exc_info=error)
