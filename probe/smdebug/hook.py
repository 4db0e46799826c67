"""smdebug's hook for PyTorch, and the one hook of a process that its functions find."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.collection import Collection, CollectionManager
from stepwatch.probe.smdebug.configuration import ReductionConfig, SaveConfig
from stepwatch.probe.smdebug.engine import Engine, reduce
from stepwatch.probe.smdebug.errors import (
    SMDebugError,
    SMDebugRuntimeError,
    SMDebugTypeError,
    SMDebugValueError,
)
from stepwatch.probe.smdebug.horovod import HvdTraceFileRotation
from stepwatch.probe.smdebug.json_config import DEFAULT_OUT_DIR, hook_arguments
from stepwatch.probe.smdebug.phases import StepPhases
from stepwatch.probe.smdebug.profiler_config import get_profiler_config_parser
from stepwatch.probe.smdebug.timeline import TimelineFileWriter

log = logging.getLogger("stepwatch")

PYTORCH = "pytorch"

_hook: Hook | None = None


class Hook:
    """Records a training job, when and what smdebug would.

    Args:
        out_dir: directory of the run; on SageMaker ``/opt/ml/output/tensors`` by default.
        export_tensorboard, tensorboard_dir: where files for TensorBoard would be; they are not written, and the log
            says so.
        dry_run: nothing is recorded.
        reduction_config: what is saved of tensors; whole ones by default.
        save_config: which steps are saved; every 500th by default.
        include_regex: tensors that are saved besides, by name.
        include_collections: names of collections, or collections, that are saved beside losses.
        save_all: save everything.
        include_workers: ``"all"`` for every rank, or else the first.

    Raises:
        RuntimeError: there is no ``out_dir``.
        SMDebugRuntimeError: a job that is over was recorded there.
        TraceError: it cannot be written.
    """

    def __init__(
        self,
        out_dir: str | None = None,
        export_tensorboard: bool = False,
        tensorboard_dir: str | None = None,
        dry_run: bool = False,
        reduction_config: ReductionConfig | None = None,
        save_config: Any = None,
        include_regex: str | Iterable[str] | None = None,
        include_collections: Iterable[Any] | None = None,
        save_all: bool = False,
        include_workers: str = "one",
    ) -> None:
        if out_dir is None and "TRAINING_JOB_NAME" not in os.environ:
            raise RuntimeError("out_dir is None; expected the directory to record into")
        self.out_dir = str(out_dir or DEFAULT_OUT_DIR)
        self.dry_run = dry_run
        by_default = os.path.join(self.out_dir, "tensorboard") if export_tensorboard else None
        self.tensorboard_dir = tensorboard_dir or by_default
        self.save_all = save_all
        self.save_config = SaveConfig.parse(save_config)
        self.reduction_config = reduction_config or ReductionConfig(save_raw_tensor=True)
        self.collection_manager = CollectionManager()
        self.include_collections = set(self._include(include_collections or ())) | {"losses"}
        if include_regex:
            self.collection_manager.get("default").include(include_regex)
            self.include_collections.add("default")
        if save_all:
            self.collection_manager.get("all").include(".*")
            self.include_collections.add("all")
        self.logger = log
        self._modules: set[nn.Module] = set()
        if export_tensorboard:
            log.warning("export_tensorboard is not done: stepwatch report shows the run")
        folder = Path(self.out_dir).expanduser()
        if (folder / "training_job_end.ts").exists() or any(folder.glob("end/rank=*.json")):
            raise SMDebugRuntimeError(f"{folder}: a job that is over was recorded there; expected a new directory")
        self.profiler_config_parser = get_profiler_config_parser(PYTORCH)
        enabled = self.profiler_config_parser.profiling_enabled
        self.timeline_writer = TimelineFileWriter(self.profiler_config_parser) if enabled else None
        self.hvd_reader = HvdTraceFileRotation(self.profiler_config_parser)
        self._engine: Engine | None = None
        if not dry_run:
            self._engine = Engine(
                self.out_dir,
                self.collection_manager,
                sorted(self.include_collections),
                self.save_config,
                self.reduction_config,
                every_worker=include_workers == "all",
                phases=StepPhases(self.profiler_config_parser, self.timeline_writer) if self.timeline_writer else None,
            )
        set_hook(self)

    @classmethod
    def create_from_json_file(cls, json_file_path: str | None = None) -> Hook:
        """A hook as a JSON file says, by default the one that SageMaker writes.

        Raises:
            FileNotFoundError: there is no such file.
            SMDebugValueError: it holds something else.
        """
        return cls(**hook_arguments(json_file_path))

    def _include(self, entries: Iterable[Any]) -> Iterator[str]:
        for entry in entries:
            if isinstance(entry, Collection):
                self.collection_manager.add(entry)
                yield entry.name
            elif isinstance(entry, str):
                yield entry
            else:
                yield from self._include(entry)

    # -- what it records ------------------------------------------------------------------------------

    def register_module(self, module: nn.Module) -> None:
        """Record this model.

        Raises:
            SMDebugError: it is no module.
            AssertionError: it is recorded already.
        """
        if not isinstance(module, nn.Module):
            raise SMDebugError(f"module is a {type(module).__name__}; expected a torch.nn.Module")
        if module in self._modules:
            raise AssertionError(f"{type(module).__name__} is registered already")
        self._modules.add(module)
        if self._engine:
            self._engine.watch_model(module)

    register_hook = register_module

    def register_loss(self, loss_module: nn.Module) -> None:
        """Record what goes into a loss and comes out.

        Raises:
            AssertionError: it is no module.
        """
        if not isinstance(loss_module, nn.Module):
            raise AssertionError(f"loss_module is a {type(loss_module).__name__}; expected a loss of torch.nn")
        if self._engine:
            self._engine.watch_loss(loss_module)

    def record_tensor_value(self, tensor_name: str, tensor_value: torch.Tensor) -> None:
        """Record the value of a loss that is a function, or of anything else, as an output.

        Raises:
            AssertionError: it is no tensor.
        """
        if not isinstance(tensor_value, torch.Tensor):
            raise AssertionError(f"tensor_value is a {type(tensor_value).__name__}; expected a tensor")
        if self._engine:
            self._engine.see_output(f"{tensor_name}_output_0", tensor_value)

    def save_tensor(self, tensor_name: str, tensor_value: Any, collections_to_write: Any = "default") -> None:
        """Save a tensor of the script's own at the step that is saved next."""
        names = [collections_to_write] if isinstance(collections_to_write, str) else list(collections_to_write)
        try:
            value = (
                tensor_value if isinstance(tensor_value, torch.Tensor) else torch.as_tensor(np.asarray(tensor_value))
            )
        except (TypeError, ValueError) as error:
            log.warning("save_tensor: %s cannot be saved: %s", tensor_name, error)
            return
        if self._engine:
            self._engine.save_tensor(tensor_name, value, names[-1])

    def save_scalar(self, name: str, value: Any, sm_metric: bool = False, timestamp: float | None = None) -> None:
        """Save a number as ``scalar/NAME``; the trace has it at its own step too.

        Raises:
            SMDebugTypeError: it is not one number.
        """
        number = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if number.size != 1 or number.dtype.kind not in "fiub":
            raise SMDebugTypeError(f"save_scalar({name!r}) got {value!r}; expected one number")
        if self._engine:
            self._engine.save_scalar(f"scalar/{name}", float(number.reshape(())))

    def set_mode(self, mode: ModeKeys) -> None:
        """Say what the coming forward passes are.

        Raises:
            SMDebugValueError: it is no mode.
        """
        if not isinstance(mode, ModeKeys):
            raise SMDebugValueError(f"mode is {mode!r}; expected one of modes.TRAIN, EVAL, PREDICT, GLOBAL")
        self.mode = mode
        if self._engine:
            self._engine.set_mode(mode)

    mode = ModeKeys.GLOBAL

    def close(self) -> None:
        """Write out everything; also done when the interpreter exits."""
        if self._engine:
            self._engine.close()
        if self.timeline_writer:
            self.timeline_writer.close()
        self.hvd_reader.close()

    def flush(self) -> None:
        """Write out every step that has ended, so that a trial of the run finds them at once, as in smdebug."""
        if self._engine:
            self._engine.flush()

    def _cleanup(self) -> None:
        self.close()

    # -- collections ----------------------------------------------------------------------------------

    def get_collection(self, name: str, create: bool = True) -> Collection:
        """The collection of that name, made if it is new and ``create`` says so.

        Raises:
            SMDebugError: there is none.
        """
        return self.collection_manager.get(name, create)

    def get_collections(self) -> dict[str, Collection]:
        """All collections by name."""
        return self.collection_manager.get_collections()

    def add_collection(self, collection: Collection) -> None:
        """Add or replace a collection.

        Raises:
            SMDebugTypeError: it is none.
        """
        if not isinstance(collection, Collection):
            raise SMDebugTypeError(f"collection is a {type(collection).__name__}; expected a Collection")
        self.collection_manager.add(collection)

    # -- where it stands ------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The global step: forward passes so far."""
        return self._engine.step if self._engine else -1

    @property
    def worker(self) -> str:
        """Name of this worker."""
        return self._get_worker_name()

    def _get_worker_name(self) -> str:
        return f"worker_{self._engine.rank if self._engine else 0}"

    def has_default_hook_configuration(self) -> bool:
        """Whether nothing but losses is saved."""
        return self.include_collections == {"losses"}

    has_default_configuration = has_default_hook_configuration

    @property
    def mode_steps(self) -> dict[ModeKeys, int]:
        """Steps of each mode that has begun, counted from 0; that of mode GLOBAL is the global step."""
        return dict(self._engine.mode_steps) if self._engine else {}

    def should_save_tensor_or_collection(self, tensor_name: str, collection_name: str) -> bool:
        """Whether the open step saves a tensor of this collection."""
        if self._engine is None or self.step < 0:
            return False
        steps = self.mode_steps
        mode = self.mode if self.mode in steps else ModeKeys.GLOBAL
        if collection_name in ("gradients", "optimizer_variables") and mode in (ModeKeys.EVAL, ModeKeys.PREDICT):
            return False
        wanted = {*self.include_collections, *(self.collection_manager.collections if self.save_all else ())}
        found = [self.collection_manager.get(name) for name in wanted if name in self.collection_manager.collections]
        return any(
            (each.save_config or self.save_config).should_save_step(mode, steps[mode])
            for each in found
            if each.name == collection_name or each.matches(tensor_name)
        )

    def count_parameters(self, model: nn.Module) -> int:
        """Entries of a model's parameters that are trained."""
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def export_collections(self) -> None:
        """Nothing: the run describes its collections by itself."""

    def record_trace_events(self, timestamp: float, *event: Any, **details: Any) -> None:
        """Write an event into the profiler's timeline, where SageMaker's configuration enables it.

        Args:
            timestamp: when it began, seconds since the epoch.
            event, details: as for :meth:`TimelineFileWriter.write_trace_events`.
        """
        if self.timeline_writer:
            self.timeline_writer.write_trace_events(timestamp, *event, **details)


BaseHook = CallbackHook = Hook
"""What hooks of several frameworks share in smdebug; here there is one."""


def get_reduction_of_data(reduction_name: str, tensor_data: Any, tensor_name: str, abs: bool = False) -> Any:
    """A reduction of a tensor, as it is saved: deviations over n - 1, norms of all entries.

    Raises:
        SMDebugError: there is no such reduction.
    """
    tensor = tensor_data if isinstance(tensor_data, torch.Tensor) else torch.as_tensor(tensor_data)
    try:
        return reduce(tensor, f"abs_{reduction_name}" if abs else reduction_name)
    except KeyError:
        raise SMDebugError(f"reduction of {tensor_name} is {reduction_name!r}; expected one of smdebug's") from None


def get_hook(json_config_path: str | None = None, create_if_not_exists: bool = False) -> Hook | None:
    """The hook of this process; made from its JSON file where there is none and ``create_if_not_exists`` says so.

    None where there is none, where the file is missing, or where ``USE_SMDEBUG`` is false.
    """
    if os.environ.get("USE_SMDEBUG", "1").strip().lower() in ("0", "false", "no", "off"):
        return None
    if _hook is None and create_if_not_exists:
        with contextlib.suppress(FileNotFoundError):
            Hook.create_from_json_file(json_config_path)
    return _hook


def set_hook(custom_hook: Hook) -> None:
    """Make it the hook of this process."""
    global _hook
    _hook = custom_hook


def del_hook() -> None:
    """This process has no hook any more."""
    global _hook
    _hook = None
