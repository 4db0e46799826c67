"""Rules that compare the ranks of a job."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import ProfilerRule, positive, spell_seconds
from stepwatch.rules.step import Step

_OWN = ("data", "forward", "optimizer", "other")
_ADVICE = {
    "data": "look at its share of the data (size of its samples, its storage) and at what else runs on its node",
    "forward": "look at the sizes of its batches, and at its device: clock, temperature, other processes",
    "optimizer": "look at its share of the parameters, and at its device",
    "other": "look for work that only this rank does: logging, metrics, checkpoints",
}


class StragglerRank(ProfilerRule):
    """One rank is slower than the others, which wait for it at every step.

    Ranks that reduce their gradients end a step together, the fast ones after waiting inside ``backward()``. So each
    rank is judged by what it does on its own: data, forward pass, optimizer and the rest. The straggler is the slowest
    rank of nearly every step, by a good part of the step, against the median of the others.

    Args:
        share: excess over the others as a share of the step that is too much, above 0.
        steps: steps that are judged together, at least 10.
        seconds: time that they must take, at least.
    """

    calibrated = (("share", "higher"),)

    def __init__(self, *, share: float = 0.2, steps: int = 50, seconds: float = 10.0) -> None:
        super().__init__()
        if steps < 10:
            raise ValueError(f"steps is {steps}; expected 10 or more")
        self.share = positive("share", share)
        self.block = steps
        self.seconds = positive("seconds", seconds)
        self._open: dict[int, dict[int, tuple[float, ...]]] = {}
        self._ranks: set[int] = set()
        self._elapsed = 0.0
        self._judged = 0
        self._highest = 0.0
        self._said: set[int] = set()

    def judge_step(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        timing = step.timing
        if not step.training or not timing.get("duration_ns"):
            return
        self._ranks.add(step.rank)
        duration, data, forward, backward, optimizer = (
            timing.get(f"{name}_ns", 0) / 1e9 for name in ("duration", "data", "forward", "backward", "optimizer")
        )
        other = max(duration - data - forward - backward - optimizer, 0.0)
        self._open.setdefault(step.step, {})[step.rank] = (data, forward, optimizer, other, duration)
        if len(self._ranks) < 2:
            if len(self._open) > self.block:  # there may be only one
                self._open.clear()
        elif step.rank == max(self._ranks):
            self._elapsed += duration
            if self._elapsed >= self.seconds and len(self._open) > self.block:
                yield from self._judge()
                self._elapsed = 0.0
                self._open.clear()

    def _judge(self) -> Iterator[Finding]:
        whole = [number for number, ranks in self._open.items() if len(ranks) == len(self._ranks)]
        ranks = sorted(self._ranks)
        # [step, rank, phase], the whole step last
        times = np.array([[self._open[number][rank] for rank in ranks] for number in whole])
        if len(whole) < self.block // 2:
            return
        self._judged += 1
        own = times[:, :, :-1].sum(axis=2)
        slowest = int(np.bincount(own.argmax(axis=1), minlength=len(ranks)).argmax())
        often = float((own.argmax(axis=1) == slowest).mean())
        others = [index for index in range(len(ranks)) if index != slowest]
        excess = np.median(times[:, slowest, :-1] - np.median(times[:, others, :-1], axis=1), axis=0)
        lost = float(np.median(own[:, slowest] - np.median(own[:, others], axis=1)))
        period = float(np.median(times[:, :, -1]))
        self._highest = max(self._highest, lost / period if often >= 0.8 else 0.0)
        rank = ranks[slowest]
        if lost < self.share * period or often < 0.8 or rank in self._said:
            return
        self._said.add(rank)
        phase = _OWN[int(excess.argmax())]
        yield self.found(
            first_step=int(whole[0]),
            rank=rank,
            value=lost / period,
            threshold=self.share,
            message=f"rank {rank} is {spell_seconds(lost)} slower than the others at every step of "
            f"{spell_seconds(period)}, most of it in its {phase} phase (+{spell_seconds(float(excess.max()))}); they "
            "wait for it",
            suggestion=_ADVICE[phase],
            evidence={"phase": phase, "lost_seconds": lost, "step_seconds": period, "slowest_of_steps": often},
        )

    def missing(self) -> str:
        """See the base class."""
        if len(self._ranks) < 2:
            return "steps of one rank only: there is none to compare it with"
        return "" if self._judged else f"fewer than {self.block} steps of all ranks, or of less than {self.seconds:g} s"

    def margin(self) -> float | None:
        """See the base class."""
        return self._highest / self.share if self._judged else None
