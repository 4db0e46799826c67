"""The hook: attaches to a model, an optimizer and a loss, and records every step."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stepwatch.probe import adjustments, lifecycle, losses, waits
from stepwatch.probe.arguments import (
    Models,
    Optimizers,
    Ranks,
    base_name,
    check_arguments,
    has_closure,
    is_recorded,
    loss_name,
    named_models,
)
from stepwatch.probe.attached import Attached
from stepwatch.probe.capture import ModelCapture, Origin
from stepwatch.probe.code import code_version
from stepwatch.probe.collections import Collection, CollectionRegistry
from stepwatch.probe.governor import Governor
from stepwatch.probe.heartbeat import Heartbeat
from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.observer import StepObserver, guarded
from stepwatch.probe.profiling import StepProfiler, plan_steps
from stepwatch.probe.reductions import ReductionConfig
from stepwatch.probe.resume import first_step, process_rank, warn_of_suspect
from stepwatch.probe.rotation import may_remove
from stepwatch.probe.sampler import Row, SystemSampler
from stepwatch.probe.schedule import SaveConfig
from stepwatch.probe.stopping import Checkpoint, Stopper, StopStyle
from stepwatch.probe.store.checkpoints import note_checkpoint
from stepwatch.probe.store.control import RecentWatcher
from stepwatch.probe.store.labels import change_labels, checked_tags
from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.remote import is_url
from stepwatch.probe.store.silent import SilentWriter
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.probe.timeline import Region, RegionTimes
from stepwatch.probe.torch_state import is_traced
from stepwatch.probe.upload import HEARING_SECONDS, Uploader

if TYPE_CHECKING:
    from stepwatch.rules.actions import Action

_IDLE_SECONDS = 0.5
_HEARING_SECONDS = 1.0  # in which a file that one rank writes is read by the others


class Hook(StepObserver):
    """Records a training job into a directory.

    ``Hook("runs/exp1", model=model, optimizer=optimizer, loss_fn=loss_fn)`` is all a script needs; it is
    closed at interpreter exit, after an uncaught exception and on SIGTERM, and is a context manager.

    Args:
        out_dir: directory of the run; made if it is missing. A job that starts again with the same one
            continues its trace: the steps that it repeats replace those of the attempt before. A URL
            (``s3://bucket/run``) is written to a local folder, and copied from there beside the training.
        model: the module that the script calls, several, or several by name; DataParallel,
            DistributedDataParallel and ``torch.compile`` wrappers are seen through.
        optimizer: the optimizer, or several; the first one counts the steps.
        loss_fn: the loss. A module is watched in training and evaluation; a function only names the
            training loss, which is then, as without ``loss_fn``, the scalar ``backward()`` is called on.
        include_collections: names or :class:`Collection` objects to save instead of losses, weights,
            biases, gradients and activations. Losses are always saved.
        include_regex: tensors to save besides, by name.
        save_config: which steps are saved; without it the interval is chosen to hold the budget. Losses
            and logged scalars are recorded at every step in any case.
        reduction_config: ``ReductionConfig(save_raw_tensor=True)`` saves whole tensors beside statistics.
        overhead_budget: share of the step time that saving may cost where no interval is given.
        rules: names of rules or rule sets to judge with in this process (e.g. ``"recommended"``).
        actions: what to do about findings: ``"stop"``, ``"profile"`` three steps where they are slow, ``"log"``, a
            webhook's URL, or action objects.
        checkpoint: called with the step before the job is stopped; returns the path it wrote, or None.
        stop: how to stop at a step boundary: ``"raise"`` TrainingStopped from ``optimizer.step()``,
            ``"flag"`` (set :attr:`should_stop`), or a callable that gets the reason.
        start_step: number of optimizer steps already done, for a resumed job; found in the optimizer's
            state where it counts its steps, as Adam does.
        ranks: which ranks of a job of several are recorded: ``"all"``, ``"first"`` (rank 0), ``"node"`` (one per
            node) or their numbers, 0 among them. The others write nothing, and stop with the rest.
        job_name: shown in reports; the directory's name by default.
        tags: words by which the run is found again, such as ``"sweep-7"`` or ``"team=vision"``.
        system_interval: seconds between samples of the machine's use, at least 0.05; 0 turns them off.
        profile_steps: steps that are recorded by torch.profiler, such as ``range(100, 103)``; at most 100.

    Raises:
        TraceError: ``out_dir`` cannot be written, or another process is writing it.
        ValueError, TypeError: an argument that is not as described.
    """

    def __init__(
        self,
        out_dir: str | os.PathLike[str],
        *,
        model: Models | None = None,
        optimizer: Optimizers | None = None,
        loss_fn: nn.Module | Callable[..., Any] | None = None,
        include_collections: Iterable[str | Collection] | None = None,
        include_regex: str | Iterable[str] | None = None,
        save_config: SaveConfig | None = None,
        reduction_config: ReductionConfig | None = None,
        overhead_budget: float = 0.01,
        rules: str | Sequence[str] | None = None,
        actions: Sequence[str | Action] = (),
        checkpoint: Checkpoint | None = None,
        stop: StopStyle = "raise",
        start_step: int | None = None,
        ranks: Ranks = "all",
        job_name: str | None = None,
        tags: Iterable[str] = (),
        system_interval: float = 0.5,
        profile_steps: Iterable[int] = (),
    ) -> None:
        models = list(named_models(model))
        optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer or ())
        check_arguments([module for _, module in models], optimizers, loss_fn)
        if actions and rules is None:
            raise ValueError("actions were given without rules; expected rules='recommended' or a list")
        words = checked_tags(tags)
        self._closing = RLock()
        self._handles: list[Any] = []
        self._regions = RegionTimes()
        self._start_step = start_step
        self.rank, world_size = process_rank()
        planned = plan_steps(profile_steps, self.rank)
        # One process of a node samples it; every one listens for a stop.
        first_of_node = os.environ.get("LOCAL_RANK", str(self.rank)) == "0"
        self._uploader = Uploader(os.fspath(out_dir), first_of_node=first_of_node) if is_url(out_dir) else None
        self.out_dir = self._uploader.folder if self._uploader else Path(out_dir).expanduser()
        hearing_seconds = HEARING_SECONDS if self._uploader else _HEARING_SECONDS
        self._recent = RecentWatcher(self.out_dir)
        self._stopper = Stopper(self.out_dir, self.rank, world_size, stop, checkpoint, hearing_seconds)
        self._recorded = is_recorded(ranks, self.rank, first_of_node)
        self._sampler = SystemSampler(
            system_interval,
            self._sampled,
            self._tick,
            sampling=first_of_node and self._recorded,
            volumes=[self.out_dir],
        )
        self._registry = CollectionRegistry(include_collections, include_regex)
        schedule = (save_config or SaveConfig()) if self._recorded else SaveConfig({})
        self._governor = Governor(overhead_budget, self.out_dir, self.rank, world_size, hearing_seconds)
        self._judge = None
        if rules is not None:
            from stepwatch.probe.judge import Judge

            self._judge = Judge(self.out_dir, self.rank, rules, actions, self.request_stop, self._suspect)
        writer: TraceWriter | SilentWriter = SilentWriter()
        if self._recorded:
            run_info = {
                "job_name": job_name or base_name(out_dir),
                "world_size": world_size,
                "command": [sys.executable, *sys.argv],
                "code": code_version(),
                "versions": {"torch": torch.__version__},
                "config": {
                    "collections": sorted(self._registry.included),
                    "save_config": schedule.describe(),
                    "overhead_budget": overhead_budget,
                    "ranks": ranks if isinstance(ranks, str) else list(ranks),
                    "rules": rules if rules is None or isinstance(rules, str) else list(rules),
                },
            }
            listener = self._judge.judge if self._judge else None
            writer = TraceWriter(self.out_dir, rank=self.rank, run_info=run_info, on_records=listener)
            if words and self.rank == 0:
                change_labels(self.out_dir, add=words)
        raw = bool(reduction_config and reduction_config.save_raw_tensor)
        super().__init__(self._registry, schedule, self._governor, writer, raw=raw)
        self._profiler = StepProfiler(
            self.out_dir,
            self.rank,
            world_size,
            planned,
            recorded=self._recorded,
            hearing_seconds=hearing_seconds,
            note=writer.note,
        )

        for name, module in models:
            self.watch_model(module, name)
        for each in optimizers:
            self.watch_optimizer(each)
        if loss_fn is not None:
            self.watch_loss(loss_fn)
        losses.listen(self)
        adjustments.listen(self._steps)
        waits.listen(self._steps.clock)
        lifecycle.register(self)
        self._heart = Heartbeat(self.out_dir, self.rank)
        self._sampler.start()
        if self._uploader:
            self._uploader.start(self._writer.note)

    # -- attaching ------------------------------------------------------------------------------------

    def watch_model(self, model: nn.Module, name: str | None = None) -> None:
        """Record this model as well; ``name`` stands for its class name in tensor names.

        Raises:
            TypeError: it is not a module.
        """
        check_arguments([model], [], None)
        taken = [capture.prefix for capture in self._tensors.models]
        capture = ModelCapture(model, self._registry, self._see_call, self._failed, name)
        if capture.prefix in taken:
            capture.prefix = f"{capture.prefix}#{len(taken)}"
        if capture.compiled:
            self._writer.note(f"{capture.prefix} runs as a compiled graph: its activations are not recorded")
        self._tensors.add_model(capture)
        self._inputs.add_model(capture)
        before, after = Attached(self.forward_begins), Attached(self.forward_ends)
        self._handles.append(model.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(model.register_forward_hook(after))

    def watch_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Record this optimizer as well; the first one watched counts the steps.

        Raises:
            TypeError: it is not an optimizer.
        """
        check_arguments([], [optimizer], None)
        self._steps.by_optimizer = self._steps.has_optimizer = True
        self._optimizers.append(optimizer)
        self._handles.append(optimizer.register_step_pre_hook(self._before_update))
        self._handles.append(optimizer.register_step_post_hook(self._after_update))

    def watch_loss(self, loss_fn: nn.Module | Callable[..., Any]) -> None:
        """Record this loss: a module's calls, or a function's name for the training loss.

        Raises:
            TypeError: it cannot be called.
        """
        check_arguments([], [], loss_fn)
        if isinstance(loss_fn, nn.Module):
            if loss_fn not in self._loss_modules:
                self._loss_modules.add(loss_fn)
                self._handles.append(loss_fn.register_forward_hook(Attached(self._see_loss)))
        else:
            self._loss_name = loss_name(getattr(loss_fn, "__name__", type(loss_fn).__name__).strip("<>_"))

    def expect_optimizer(self) -> None:
        """Count optimizer steps although no optimizer is known yet: one will be watched when it steps."""
        self._steps.by_optimizer = True

    # -- what a script may call -----------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Global step: the number of optimizer steps done."""
        return self._steps.step

    @property
    def should_stop(self) -> bool:
        """Whether the job was asked to stop, for scripts that use ``stop="flag"``."""
        return self._stopper.stopped

    @guarded
    def set_mode(self, mode: ModeKeys) -> None:
        """Say what the job is doing from now on, instead of having it read off the model."""
        if not isinstance(mode, ModeKeys):
            raise TypeError(f"mode is {mode!r}; expected one of modes.TRAIN, EVAL, PREDICT, GLOBAL")
        if self._mode is not mode:
            self._steps.finish()
        self._mode = mode

    @guarded
    def log(self, name: str, value: float | torch.Tensor) -> None:
        """Record a scalar under the current step and mode; a loss logged in EVAL is an evaluation loss."""
        if not isinstance(value, torch.Tensor):
            value = float(value)
        elif value.numel() != 1:
            raise ValueError(f"log({name!r}) got a tensor of {value.numel()} entries; expected one number")
        self._current().add_scalar(name, value)

    def region(self, name: str) -> Region:
        """Time a part of the script, as ``with hook.region("augment"):`` or as a decorator.

        What it takes in a step, over all its runs, is recorded in seconds as the scalar ``seconds/NAME``.
        """
        return Region(name, self._add_region)

    @guarded
    def _add_region(self, name: str, nanoseconds: int) -> None:
        self._regions.add(self._current(), name, nanoseconds)

    @guarded
    def save_tensor(self, name: str, tensor: torch.Tensor, collection: str = "default") -> None:
        """Record a tensor of the script's own, at steps that are saved."""
        self._registry.get(collection).tensor_names.add(name)
        self._registry.include(collection)
        record = self._current()
        if record.due:
            record.due |= {collection}
            self._tensors.see_tensor(record, name, tensor, Origin((collection,), None, None))

    @guarded
    def note_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Say that a checkpoint of the current step was written, so that it is known which are healthy."""
        if self._recorded:
            note_checkpoint(self.out_dir, self.rank, self.step, path)

    def may_remove(self, path: str | os.PathLike[str]) -> bool:
        """Whether a checkpoint may be rotated away: not the last healthy one, while a finding is open."""
        return may_remove(self.out_dir, path)

    def request_stop(self, reason: str) -> None:
        """Stop the job at the end of its current step, in the way of ``stop``; from any thread."""
        self._stopper.request(reason)
        self._poll_stop()

    def close(self, status: str = "finished", reason: str = "") -> None:
        """Write out everything and detach; called again it does nothing.

        Args:
            status: how the job ended: "finished", "exception", "signal" or "stopped".
            reason: the exception or signal.
        """
        with self._closing:  # who comes second, on SIGTERM say, waits until everything is written
            if not self._closed:
                self._close(status, reason)

    def _close(self, status: str, reason: str) -> None:
        with self._lock:
            try:
                if self._unplaced:
                    self._place_losses(self._working(), 0)
                self._steps.finish_all()
            except Exception as error:
                self._failed("close", error)
            self._closed = True
        losses.unlisten(self)
        adjustments.unlisten(self._steps)
        waits.unlisten(self._steps.clock)
        self._tensors.disarm()
        self._work.close()
        for handle in self._handles:
            handle.remove()
        self._sampler.stop()
        self._profiler.close(self.step)
        self._writer.flush()
        if self._judge:
            self._judge.conclude()
        self._writer.close(status, reason, last_step=self.step)
        if self._uploader:
            self._uploader.close()
        lifecycle.unregister(self)

    def forget(self) -> None:
        """This is a forked child, a data loader's worker say: leave the trace to the parent."""
        self._closing = RLock()  # whoever held it is not here
        self._closed = True

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.close("exception", lifecycle.describe_exception(kind, error))

    # -- what torch calls -----------------------------------------------------------------------------

    def forward_begins(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A forward pass of a watched model begins with these arguments."""
        self._begin_forward(module, args, kwargs)
        if not self._steps.by_optimizer:
            self._stop_if_due()
            self._profile_if_due()

    def _before_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._begin_update(optimizer, has_closure(args, kwargs))

    def _after_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._end_update(optimizer, has_closure(args, kwargs))
        self._stop_if_due()
        self._profile_if_due()

    def _stop_if_due(self) -> None:
        if self._closed or not self._stopper.due(self._steps.step):
            return
        stopped = self._stopper.stop(self.step)
        if self._stopper.raises:
            self.close("stopped", stopped.reason)
        self._stopper.leave(stopped, self.step)

    def _profile_if_due(self) -> None:
        if self._profiler.wanted and not self._closed and not is_traced():
            clock = self._steps.clock
            if self._profiler.at_boundary(self.step):
                clock.leave_out()
            clock.untimed = self._profiler.running

    # -- small things ---------------------------------------------------------------------------------

    def _start(self) -> None:
        super()._start()
        if self.rank == 0 and (warning := warn_of_suspect(self.out_dir, self.step)):
            self._writer.note(warning)
        self._profile_if_due()

    def _first_step(self) -> int:
        if self._start_step is not None:
            return self._start_step
        rank = self.rank if self._recorded else 0
        return first_step(self._optimizers[0] if self._optimizers else None, self.out_dir, rank)

    def _describe(self, info: TensorInfo) -> None:
        super()._describe(info)
        if self._judge:
            self._judge.describe(info)

    def _sampled(self, rows: list[Row]) -> None:
        self._writer.submit_system(rows)
        if self._judge:
            self._judge.sample(rows)

    def _suspect(self) -> None:
        """A rule in this process found something: the steps before are written, and those that follow, for a while."""
        self._writer.write_recent()
        with self._lock:
            self._governor.save_densely(self.step)

    def _poll_stop(self) -> None:
        self._stopper.poll(self.step, self._step_seconds)

    def _tick(self) -> None:
        """Several times a second, from the sampler's thread."""
        if self._recorded:
            self._heart.beat(self.step, *self._steps.clock.activity)
        self._poll_stop()
        if self._recent.asked():
            self._suspect()
        self._profiler.poll(self.step, self._step_seconds)
        self._governor.exchange(self.step, self._step_seconds)
        with self._lock:
            self._steps.finish_idle(_IDLE_SECONDS)
