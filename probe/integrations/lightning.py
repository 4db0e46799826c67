"""Lightning: ``Trainer(callbacks=[StepwatchCallback("runs/exp1", rules="recommended", actions=["stop"])])``."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch

from stepwatch.probe.hook import Hook
from stepwatch.probe.launch import is_loss
from stepwatch.probe.lifecycle import describe_exception

if "pytorch_lightning" in sys.modules or not importlib.util.find_spec("lightning"):
    from pytorch_lightning import Callback, LightningModule, Trainer  # the same library under its older name
else:
    from lightning.pytorch import Callback, LightningModule, Trainer


class StepwatchCallback(Callback):  # type: ignore[misc]
    """Records the fit of a LightningModule.

    What is logged with ``self.log`` is recorded too. When a rule or ``stepwatch stop`` asks for it, the trainer writes
    a checkpoint of its own at the end of the batch, and stops as with any early stopping (not before its ``min_steps``
    and ``min_epochs``). Checkpoints are noted, and ModelCheckpoint does not remove the last healthy one while a finding
    is open.

    Attributes:
        hook: the hook of the fit under way; None outside.
        stop_reason: why it was stopped, it or the one before; None where it was not.

    Args:
        out_dir: directory of the run.
        options: further arguments of :class:`stepwatch.probe.Hook`; models, losses and optimizers are found here.
    """

    def __init__(self, out_dir: str | os.PathLike[str], **options: Any) -> None:
        self.hook: Hook | None = None
        self._out_dir = Path(out_dir)
        self._options = options
        self.stop_reason: str | None = None
        self._logged: dict[str, Any] = {}
        self._training: set[str] = set()
        self._release: Callable[[], object] = lambda: None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the module."""
        self.stop_reason = None
        self._logged = dict(trainer.callback_metrics)
        optimizers = [getattr(each, "optimizer", each) for each in trainer.optimizers]
        resumed = {"start_step": trainer.global_step} if trainer.global_step else {}
        own = {"checkpoint": self._checkpoint, "stop": self._stop, **resumed}
        self.hook = hook = Hook(self._out_dir, model=pl_module, optimizer=optimizers, **{**own, **self._options})
        # A forward pass is what the trainer calls, training_step or validation_step, and not the module's own.
        for handle in hook._handles[:2]:
            handle.remove()
        for part in pl_module.modules():
            if is_loss(part):
                hook.watch_loss(part)
        self._guard_checkpoints(trainer, hook)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any) -> None:
        """A forward pass begins."""
        if self.hook is not None:
            self.hook.forward_begins(pl_module, (batch,), {})

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """The forward pass has ended."""
        if self.hook is not None:
            self.hook.forward_ends(pl_module, (), loss)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Record what was logged; stop where that is due."""
        self._training |= self._log(trainer)
        if self.hook is not None and self.stop_reason is not None and not trainer.should_stop:
            trainer.save_checkpoint(self._checkpoint(self.hook.step))
            trainer.should_stop = True

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """A forward pass begins."""
        if self.hook is not None:
            self.hook.forward_begins(pl_module, (), {})

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """The forward pass has ended; what it returned is a loss, where it is one number."""
        if self.hook is not None:
            alone = isinstance(outputs, torch.Tensor) and outputs.numel() == 1
            self.hook.forward_ends(pl_module, (), {"loss": outputs} if alone else outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what the evaluation gave, under other names than training did."""
        if not trainer.sanity_checking:
            self._log(trainer, besides=self._training)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what the epoch gave."""
        self._log(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the run."""
        self._close("finished" if self.stop_reason is None else "stopped", self.stop_reason or "")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the run, and say why it ended."""
        self._close("exception", describe_exception(type(exception), exception))

    def _guard_checkpoints(self, trainer: Trainer, hook: Hook) -> None:
        """Note what the trainer writes, and keep the last healthy one."""
        strategy = trainer.strategy
        save, remove = strategy.save_checkpoint, strategy.remove_checkpoint

        def noted(checkpoint: dict[str, Any], filepath: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
            save(checkpoint, filepath, *args, **kwargs)
            if trainer.is_global_zero:
                hook.note_checkpoint(filepath)

        def guarded(filepath: str | os.PathLike[str]) -> None:
            if hook.may_remove(filepath):
                remove(filepath)

        strategy.save_checkpoint, strategy.remove_checkpoint = noted, guarded
        self._release = lambda: (strategy.__dict__.pop("save_checkpoint"), strategy.__dict__.pop("remove_checkpoint"))

    def _close(self, status: str, reason: str) -> None:
        if self.hook is not None:
            self.hook.close(status, reason)
            self.hook = None
            self._release()

    def _checkpoint(self, step: int) -> Path:
        """Where the trainer will write it at the end of this batch; all its ranks take part."""
        return self._out_dir / f"checkpoint-{step}.ckpt"

    def _stop(self, reason: str) -> None:
        self.stop_reason = reason

    def _log(self, trainer: Trainer, besides: Set[str] = frozenset()) -> set[str]:
        """Record the metrics that have new values, and return their names."""
        if self.hook is None:
            return set()
        metrics = dict(trainer.callback_metrics)
        new = {name for name, value in metrics.items() if name not in besides and value is not self._logged.get(name)}
        for name in new:
            self.hook.log(name, metrics[name])
        self._logged = metrics
        return new
