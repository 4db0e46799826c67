"""Stops the job at the end of a step, after the script's checkpoint was written."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from stepwatch.probe import sagemaker
from stepwatch.probe.store.checkpoints import note_checkpoint
from stepwatch.probe.store.control import (
    Agreement,
    StopRequest,
    StopWatcher,
    acknowledge,
    agree,
    confirm,
    confirmed,
    read_agreement,
    request_stop,
)

log = logging.getLogger("stepwatch")

StopStyle: TypeAlias = 'Literal["raise", "flag"] | Callable[[str], None]'
Checkpoint: TypeAlias = "Callable[[int], str | os.PathLike[str] | None]"

_PATIENCE_SECONDS = 10.0


class TrainingStopped(Exception):
    """Raised from ``optimizer.step()`` (or the forward pass, without an optimizer) to end the job.

    Attributes:
        reason: why.
        step: number of optimizer steps done.
        checkpoint: path that the checkpoint callback returned, or None.
    """

    def __init__(self, reason: str, step: int, checkpoint: str | None) -> None:
        super().__init__(f"stopped after {step} steps: {reason}")
        self.reason = reason
        self.step = step
        self.checkpoint = checkpoint


class TrainingFinished(TrainingStopped, SystemExit):
    """The same, where a stop is to end the process with status 0."""

    code = 0


@dataclass(frozen=True)
class Stopped:
    """What was done to stop."""

    reason: str
    checkpoint: str | None


class Stopper:
    """Collects stop requests, from rules in this process and from RUN/control, and carries one out.

    Raises:
        ValueError: a ``style`` that is not "raise", "flag" or a callable.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        world_size: int,
        style: StopStyle,
        checkpoint: Checkpoint | None,
        hearing_seconds: float,
    ) -> None:
        if style not in ("raise", "flag") and not callable(style):
            raise ValueError(f"stop is {style!r}; expected 'raise', 'flag' or a callable")
        sagemaker.stop_succeeds()  # what it says is to be wrong now, not when the job is to stop
        self._run_dir = run_dir
        self._rank = rank
        self._world_size = world_size
        self._follows = world_size > 1 and rank > 0
        self._style = style
        self._checkpoint = checkpoint
        self._hearing_seconds = hearing_seconds
        before = read_agreement(run_dir)
        self._before = before.request_id if before is not None else None
        self._watcher = StopWatcher(run_dir)
        self._request: StopRequest | None = None
        self._heard_at = 0.0
        self._silent: set[int] = set()
        self._agreement: Agreement | None = None
        self.stopped = False

    def request(self, reason: str) -> None:
        """Ask for a stop; through the run's directory, so that every rank hears of it."""
        request_stop(self._run_dir, reason, by="hook")

    def poll(self, step: int, step_seconds: float) -> None:
        """Look for a request in the run's directory; called from a thread beside the training.

        The other ranks of several confirm that they know of it, and from then on look at every step for what is agreed.
        Rank 0 then picks a step that none has reached: in a job whose ranks wait for each other nobody misses it.

        Args:
            step: steps done.
            step_seconds: how long a step takes, or 0 where that is not known.
        """
        if self._agreement is not None or self.stopped:
            return
        request = self._watcher.poll()
        if request is not None:
            self._request, self._heard_at = request, time.monotonic()
            self._silent = set(range(1, self._world_size))
            if self._follows:
                with suppress(OSError):  # rank 0 waits for it no longer than it has patience
                    confirm(self._run_dir, self._rank, request.id)
        if self._follows:
            self._hear()
        elif self._request is None:
            return
        elif self._world_size == 1:
            self._agreement = Agreement(self._request.id, self._request.reason, 0, self._request.time_ns)
        elif self._all_know(self._request):
            ahead = math.ceil(self._hearing_seconds / step_seconds) if step_seconds else 1
            self._agreement = agree(self._run_dir, self._request, step + ahead + 1)

    def _hear(self) -> None:
        agreed = read_agreement(self._run_dir)
        if agreed is not None and agreed.request_id != self._before:
            self._agreement = agreed

    def _all_know(self, request: StopRequest) -> bool:
        """Whether every other rank has confirmed the request, or is not heard of: it may have no hook."""
        self._silent = {rank for rank in self._silent if not confirmed(self._run_dir, rank, request.id)}
        patience = max(_PATIENCE_SECONDS, 2 * self._hearing_seconds)
        return not self._silent or time.monotonic() - self._heard_at > patience

    def due(self, step: int) -> bool:
        """Whether the job stops now that this many steps are done."""
        if self._follows and self._request is not None and self._agreement is None:
            self._hear()
        return self._agreement is not None and not self.stopped and step >= self._agreement.step

    @property
    def raises(self) -> bool:
        """Whether a stop ends in an exception."""
        return self._style == "raise"

    def stop(self, step: int) -> Stopped:
        """Write the checkpoint and acknowledge the request. A checkpoint that fails does not keep us here."""
        assert self._agreement is not None
        reason = self._agreement.reason
        self.stopped = True
        request = self._agreement.request_id
        path: str | None = None
        if self._checkpoint is not None:
            self._answer(request, step, None, saving=True)
            try:
                written = self._checkpoint(step)
                path = os.fspath(written) if written is not None else None
                if path is not None:
                    note_checkpoint(self._run_dir, self._rank, step, path)
            except Exception:
                log.exception("the checkpoint callback failed; the job is stopped without a checkpoint")
        self._answer(request, step, path)
        log.warning("stopping after %d steps: %s", step, reason)
        return Stopped(reason, path)

    def _answer(self, request: str, step: int, checkpoint: str | None, saving: bool = False) -> None:
        try:
            acknowledge(self._run_dir, self._rank, request, step=step, checkpoint=checkpoint, saving=saving)
        except OSError as error:
            log.warning("%s: the stop cannot be acknowledged: %s", self._run_dir, error)

    def leave(self, stopped: Stopped, step: int) -> None:
        """Hand the stop to the script, in the style it asked for.

        Raises:
            TrainingStopped: with style "raise".
        """
        if self.raises:
            if sagemaker.stop_succeeds():
                raise TrainingFinished(stopped.reason, step, stopped.checkpoint)
            sagemaker.report_stop(stopped.reason)
            raise TrainingStopped(stopped.reason, step, stopped.checkpoint)
        if callable(self._style):
            self._style(stopped.reason)
