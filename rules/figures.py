"""Where a live run stands, for monitoring."""

from __future__ import annotations

import time
from dataclasses import dataclass

from stepwatch.rules.step import Step


@dataclass
class Figures:
    """Figures of a run's first rank, as of the latest training step that was judged.

    Attributes:
        step: its number; -1 before the first.
        loss: the latest training loss; None while there is none.
        ended: when the step was over, seconds since the epoch.
        lag: seconds from then until it was judged.
    """

    step: int = -1
    loss: float | None = None
    ended: float = 0.0
    lag: float = 0.0
    _rank: int | None = None

    def see(self, step: Step) -> None:
        """Take a step in."""
        if self._rank is None or step.rank < self._rank:
            self._rank = step.rank
        if step.rank != self._rank or not step.training:
            return
        self.step = step.step
        self.ended = (step.time_ns + (step.timing.get("duration_ns") or 0)) / 1e9
        self.lag = max(0.0, time.time() - self.ended)
        self.loss = next(iter(step.train_losses().values()), self.loss)
