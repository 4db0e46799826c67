"""Rules about waiting for data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.profiler.base import positive, spell_seconds
from stepwatch.rules.profiler.processors import BesideOthers, Mark, Use
from stepwatch.rules.step import Step

_WORKERS_PAY = 1e-3
"""Seconds of a batch below which handing it over from another process costs as much as making it."""


@dataclass
class _Stretch:
    """Consecutive training steps of one rank: their number, and seconds altogether."""

    first_step: int
    since: Mark
    steps: int = 0
    whole: float = 0.0
    waited: float = 0.0
    workers: int = 0


class DataLoadingBound(BesideOthers):
    """Training waits for its DataLoader: the device idles while batches are prepared.

    Judged over stretches of steps, so that the start of the workers and the first batch of an epoch do not count for
    more than they cost. The number of workers that would feed the training follows from two times: what the training
    itself takes per step, and what one worker takes per batch (without workers the wait itself; with W busy ones,
    W steps).

    Where other processes have taken the processors meanwhile, what was waited for them is taken off. Waits of less than
    a millisecond, which no workers would shorten, are a remark and no warning.

    Args:
        share: share of the time spent waiting that is too much, above 0.
        seconds: length of a stretch, at least.
        steps: steps of a stretch, at least.
    """

    calibrated = (("share", "higher"),)

    def __init__(self, *, share: float = 0.4, seconds: float = 20.0, steps: int = 50) -> None:
        super().__init__(3 * positive("seconds", seconds))
        self.share = positive("share", share)
        self.seconds = seconds
        self.least = positive("steps", steps)
        self._lost = False
        self._open: dict[int, _Stretch] = {}
        self._seen: set[int] = set()
        self._judged = 0
        self._loader = False
        self._longest = 0.0
        self._highest = 0.0
        self._said = False

    def judge_step(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        duration = step.timing.get("duration_ns", 0) / 1e9
        if not step.training or not duration:
            return
        if step.rank not in self._seen:  # the first step also starts the workers and warms up
            self._seen.add(step.rank)
            return
        waited = step.timing.get("loader_ns")
        self._loader = self._loader or waited is not None
        stretch = self._open.setdefault(step.rank, _Stretch(step.step, self.processors.mark()))
        stretch.steps += 1
        stretch.whole += duration
        stretch.waited += (waited or 0) / 1e9
        stretch.workers = step.timing.get("loader_workers", stretch.workers)
        self._longest = max(self._longest, stretch.whole)
        if stretch.whole >= self.seconds and stretch.steps >= self.least:
            del self._open[step.rank]
            yield from self._judge(step, stretch)

    def _judge(self, step: Step, stretch: _Stretch) -> Iterator[Finding]:
        self._judged += 1
        use = self.processors.since(stretch.since)
        seen = stretch.waited / stretch.whole
        # What others took off the loader's time at most: all that a process of the job was kept waiting.
        share = max(1 - (1 - seen) / (1 - use.lost), 0.0) if use is not None else seen
        self._lost = self._lost or share < self.share <= seen
        self._highest = max(self._highest, share)
        if share < self.share or self._said:
            return
        self._said = True
        wait, period = stretch.waited / stretch.steps, stretch.whole / stretch.steps
        working = max(period - wait, 1e-6)
        per_batch = stretch.workers * period if stretch.workers else wait
        needed = max(math.ceil(per_batch / working), stretch.workers + 1)
        has = f"{stretch.workers} workers" if stretch.workers else "no worker processes"
        yield self.found(
            first_step=stretch.first_step,
            rank=step.rank,
            value=share,
            threshold=self.share,
            message=f"{100 * share:.0f} % of the time is spent waiting for the DataLoader, which has {has}: "
            f"{spell_seconds(wait)} of every step of {spell_seconds(period)}",
            suggestion=_advice(wait, needed, use)
            or f"num_workers={needed} would feed this training (a batch takes a worker {spell_seconds(per_batch)}, the "
            f"training {spell_seconds(working)} a step), with persistent_workers=True; where the machine has fewer "
            "cores, make a sample cheaper: decode and resize beforehand, read fewer and larger files",
            severity=Severity.INFO if wait < _WORKERS_PAY else None,
            evidence={
                "workers": stretch.workers,
                "workers_needed": needed,
                "wait_seconds": wait,
                "step_seconds": period,
                "batch_seconds": per_batch,
            },
        )

    def missing(self) -> str:
        """See the base class."""
        if self._judged and not self._loader:
            return "no step waited for a DataLoader; other ways to load data are not seen"
        if self._lost and not self._said:
            return "while it waited for data other processes had taken the processors"
        if not self._judged:
            return f"{spell_seconds(self._longest)} of training; at least {spell_seconds(self.seconds)} are needed"
        return ""

    def margin(self) -> float | None:
        """See the base class."""
        return self._highest / self.share if self._judged else None


def _advice(wait: float, needed: int, use: Use | None) -> str:
    """What to try where more workers would not help; "" where they would."""
    if wait < _WORKERS_PAY:
        return (
            "take whole batches at once instead of sample by sample (tensors indexed by a batch of numbers, or "
            "__getitems__ in the data set), or larger batches: of so short a wait workers would save nothing"
        )
    if use is not None and use.own:
        return (
            f"all processors are in use, so that {needed} workers would wait for each other: make a sample cheaper "
            "(decode and resize beforehand, read fewer and larger files), or take a machine with more processors"
        )
    return ""
