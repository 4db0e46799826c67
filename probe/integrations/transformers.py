"""Hugging Face: ``Trainer(..., callbacks=[StepwatchCallback("runs/exp1", rules="recommended", actions=["stop"])])``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stepwatch.probe.hook import Hook
from stepwatch.probe.rotation import keep_beside, needed_checkpoints

log = logging.getLogger("stepwatch")


class StepwatchCallback(TrainerCallback):  # type: ignore[misc]
    """Records a training of a Trainer.

    What the Trainer logs is recorded too. When a rule or ``stepwatch stop`` asks for it, the Trainer saves a checkpoint
    of its own in its output directory at the end of the step, and stops. While a finding is open the files of the last
    healthy checkpoint get a second name, ``kept-checkpoint-N``, which ``save_total_limit`` does not touch.

    Attributes:
        hook: the hook of the training under way; None outside.
        stop_reason: why it was stopped, it or the one before; None where it was not.

    Args:
        out_dir: directory of the run.
        options: further arguments of :class:`stepwatch.probe.Hook`; the model and the optimizer are the Trainer's.
    """

    def __init__(self, out_dir: str | os.PathLike[str], **options: Any) -> None:
        self.hook: Hook | None = None
        self._out_dir = out_dir
        self._options = options
        self.stop_reason: str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to the model and the optimizer."""
        self.stop_reason = None
        optimizer = kwargs["optimizer"]

        def checkpoint(step: int) -> Path:
            """Where the Trainer will write it at the end of this step."""
            return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step + 1}"

        own = {"checkpoint": checkpoint, "stop": self._stop, "start_step": state.global_step}
        self.hook = Hook(
            self._out_dir,
            model=kwargs["model"],
            optimizer=getattr(optimizer, "optimizer", optimizer),
            **{**own, **self._options},
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record what the Trainer logs."""
        for name, value in (logs or {}).items():
            if self.hook is not None and isinstance(value, (int, float)):
                self.hook.log(name, value)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the Trainer save and stop where that is due, and keep what its rotation is not to lose."""
        if self.stop_reason is not None:
            control.should_save = control.should_training_stop = True
        if control.should_save and args.save_total_limit and state.is_world_process_zero and self.hook is not None:
            for checkpoint in needed_checkpoints(self.hook.out_dir):
                self._keep(checkpoint)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the checkpoint that the Trainer has written."""
        if self.hook is not None:
            self.hook.note_checkpoint(Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the run."""
        if self.hook is not None:
            self.hook.close("finished" if self.stop_reason is None else "stopped", self.stop_reason or "")
            self.hook = None

    def _keep(self, checkpoint: Path) -> None:
        try:
            if not checkpoint.name.startswith("kept-") and checkpoint.exists():
                log.warning("%s: its files are kept as %s", checkpoint, keep_beside(checkpoint))
        except OSError as error:
            log.warning("%s: the last healthy checkpoint may be rotated away: %s", checkpoint, error)

    def _stop(self, reason: str) -> None:
        self.stop_reason = reason
