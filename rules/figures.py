"""Where a live run stands, for monitoring."""

from __future__ import annotations

import time
from dataclasses import dataclass

from stepwatch.rules.profiler.base import Sample
from stepwatch.rules.step import Step


@dataclass
class Figures:
    """Figures of a run's first rank, as of the latest training step that was judged.

    Attributes:
        step: its number; -1 before the first.
        loss: the latest training loss; None while there is none.
        ended: when the step was over, seconds since the epoch.
        lag: seconds from then until it was judged.
        cpu_percent: use of the node's cores, by the latest sample; None while there is none.
        gpu_percent: use of its GPUs, their mean.
    """

    step: int = -1
    loss: float | None = None
    ended: float = 0.0
    lag: float = 0.0
    cpu_percent: float | None = None
    gpu_percent: float | None = None
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

    def see_sample(self, sample: Sample) -> None:
        """Take a sample of a node in."""
        self.cpu_percent = value if (value := sample.get("node", "cpu_percent")) is not None else self.cpu_percent
        if used := [value for _, value in sample.of("utilization_percent")]:
            self.gpu_percent = sum(used) / len(used)
