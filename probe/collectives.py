"""How long the training thread waits for other ranks: gradients being reduced, shards being gathered.

It waits in two places. Every collective that is called from Python ends in ``Work.wait``, which :mod:`.waits` times.
DistributedDataParallel and FSDP start theirs in the backward pass and wait for them at its end, in a callback of
autograd's engine that they queue in the course of it. The engine runs such callbacks in the order in which they were
queued, so that one that is queued when the pass begins is run when the last gradient is there and nothing was waited
for yet: what passes from there to the end of the pass is waiting. Communication hooks are left alone.

Not seen are functional collectives (tensor parallelism) and those in compiled graphs.

Under NCCL it is the device that waits, not the host, whose times are next to nothing then; the device's own are those
of :mod:`.device_clock`, marked at the same places. The engine runs the callback on the stream that the pass was called
on, when that has been told to wait for the gradients, and from there to the end of the pass it is told to wait for the
collectives.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter_ns

import torch
import torch.distributed as dist
from torch.autograd import Variable

from stepwatch.probe.timeline import StepClock

log = logging.getLogger("stepwatch")

COLLECTIVE = "collective_ns"


class BackwardWait:
    """Times the end of backward passes.

    Args:
        clock: gets the time as ``collective_ns``.
    """

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self._handle: torch.utils.hooks.RemovableHandle | None = None
        self._since = 0
        self._counted = 0

    def begins(self, losses: Sequence[torch.Tensor]) -> None:
        """A backward pass begins on these tensors."""
        if dist.is_available() and dist.is_initialized() and losses and losses[0].requires_grad:
            self._handle = losses[0].register_hook(self._first_gradient)  # type: ignore[no-untyped-call]

    def ends(self) -> None:
        """It returned or raised."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._since:
            self._clock.device.end(COLLECTIVE)
            counted = self._clock.waiting(COLLECTIVE) - self._counted
            self._clock.waited(COLLECTIVE, perf_counter_ns() - self._since - counted)
            self._clock.waits_for = ""
            self._since = 0

    def _first_gradient(self, gradient: torch.Tensor) -> None:
        try:
            Variable._execution_engine.queue_callback(self._last_gradient)  # type: ignore[attr-defined]
        except RuntimeError as error:  # an engine that runs no callbacks: compiled autograd
            log.debug("the end of the backward pass is not timed: %s", error)

    def _last_gradient(self) -> None:
        self._since = perf_counter_ns()
        self._counted = self._clock.waiting(COLLECTIVE)
        self._clock.waits_for = COLLECTIVE
        self._clock.device.begin(COLLECTIVE)
