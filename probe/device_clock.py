"""How long the phases of a step took on a CUDA device, told by events on its stream: nobody waits for it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch

from stepwatch.probe.torch_state import uses_cuda

log = logging.getLogger("stepwatch")

COPY = "copy_ns"

PHASES = (COPY, "forward_ns", "backward_ns", "optimizer_ns", "collective_ns")
"""Phases that are marked. Under NCCL, ``collective_ns`` is what the stream that computes stands still for others."""

_SECONDS = 1.0


class DeviceClock:
    """Marks where the stream that computes enters and leaves the phases of a step.

    The marks are events that the device passes in its turn, behind the work of the phase; when it has passed them, the
    time between two of them is known. So a phase is as long as the device was in it, with what it waited for the host,
    for other streams and for other ranks. Some microseconds are paid for a mark, so that about one step in a
    second has them: one whose number a power of two divides, so that ranks that are about as fast have them at the
    same steps.

    A batch is often copied before the step that it belongs to is known to have begun: marks of copies are held until
    another phase begins.

    Attributes:
        active: whether the phases of the open step are marked.
        copying: whether copies are, for this step or the one that follows.
    """

    def __init__(self) -> None:
        self.active = self.copying = False
        self._held: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._open: dict[str, list[torch.cuda.Event]] = {}
        self._marked: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self, phase: str) -> None:
        """The host enters a phase; entered again within itself, it counts once."""
        if phase != COPY:
            self._take_copies()
        if (self.copying if phase == COPY else self.active) and phase in PHASES:
            mark = self._mark()
            if mark is not None:
                self._open.setdefault(phase, []).append(mark)

    def end(self, phase: str) -> None:
        """The host leaves it."""
        begun = self._open.get(phase)
        if not begun:
            return
        first = begun.pop()
        mark = None if begun else self._mark()
        if mark is not None:
            (self._held if phase == COPY else self._marked).append((phase, first, mark))

    def forget(self, phase: str) -> None:
        """The phase that the host entered last was none."""
        if begun := self._open.get(phase):
            begun.pop()

    def turn(self, step: int, step_seconds: float) -> Callable[[], dict[str, int]] | None:
        """The step is over and the next one begins.

        Args:
            step: number of the one that begins.
            step_seconds: how long a step takes, 0 where that is not known yet.

        Returns:
            What waits for the device, if it must, and tells the nanoseconds of the phases of the step that is over, by
            column; None where they were not marked.
        """
        marked, self._marked = self._marked, []
        self._open.clear()
        self.active, follows = (uses_cuda() and _is_due(number, step_seconds) for number in (step, step + 1))
        self.copying = self.active or follows
        if not self.active:
            self._held.clear()
        return (lambda: _elapsed(marked)) if marked else None

    def _take_copies(self) -> None:
        if self._held:
            self._marked += self._held if self.active else ()
            self._held.clear()

    def _mark(self) -> torch.cuda.Event | None:
        try:
            if not torch.cuda.is_current_stream_capturing():
                mark = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
                mark.record()
                return mark
        except RuntimeError as error:  # of the device: the script will meet it itself
            log.debug("the phases on the device are not timed: %s", error)
        self.active = self.copying = False
        for marks in (self._open, self._marked, self._held):
            marks.clear()
        return None


def _is_due(step: int, step_seconds: float) -> bool:
    if not step_seconds:
        return False
    return step % (1 << max(math.ceil(math.log2(_SECONDS / step_seconds)), 0)) == 0


def _elapsed(marked: list[tuple[str, torch.cuda.Event, torch.cuda.Event]]) -> dict[str, int]:
    """Nanoseconds; nothing where two marks are not of one device."""
    found: dict[str, int] = {}
    for phase, begin, end in marked:
        try:
            end.synchronize()
            elapsed = begin.elapsed_time(end)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            log.debug("a phase on the device is not timed: %s", error)
            return {}
        column = f"device_{phase}"
        found[column] = found.get(column, 0) + int(1e6 * elapsed)
    return found
