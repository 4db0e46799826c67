"""Accelerate: ``hook = watch(accelerator, "runs/exp1", model=model, optimizer=optimizer)`` after ``prepare``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from torch import nn

from stepwatch.probe.hook import Hook
from stepwatch.probe.stopping import Checkpoint


def watch(
    accelerator: Accelerator,
    out_dir: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    **options: Any,
) -> Hook:
    """Record a loop that Accelerate drives.

    ``accelerator.log`` records as ``hook.log`` does, and ``accelerator.end_training()`` closes the run. Before a stop
    ``accelerator.save_state`` writes a checkpoint below the run's directory.

    Args:
        accelerator: it has prepared ``model`` and ``optimizer``.
        out_dir: directory of the run.
        model, optimizer: as ``prepare`` returned them.
        options: further arguments of :class:`stepwatch.probe.Hook`.
    """

    inner = getattr(optimizer, "optimizer", optimizer)
    hook = Hook(out_dir, model=model, optimizer=inner, **{"checkpoint": saving(accelerator, out_dir), **options})
    accelerator.trackers.append(StepwatchTracker(hook))
    return hook


def saving(accelerator: Accelerator, out_dir: str | os.PathLike[str]) -> Checkpoint:
    """Saves what Accelerate has prepared below the run's directory, before a stop."""

    def save(step: int) -> Path:
        path = Path(out_dir) / f"checkpoint-{step}"
        accelerator.save_state(str(path))
        return path

    return save


class StepwatchTracker(GeneralTracker):  # type: ignore[misc]
    """Passes to a hook what ``accelerator.log`` is given."""

    name = "stepwatch"
    requires_logging_directory = False

    def __init__(self, hook: Hook) -> None:
        super().__init__(_blank=True)
        self.hook = hook

    @property
    def tracker(self) -> Hook:
        """The hook."""
        return self.hook

    @on_main_process  # type: ignore[untyped-decorator]
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """A run keeps its own configuration."""

    @on_main_process  # type: ignore[untyped-decorator]
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record numbers at the step that training is at."""
        for name, value in values.items():
            if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1):
                self.hook.log(name, value)

    def finish(self) -> None:
        """Close the run."""
        self.hook.close()
