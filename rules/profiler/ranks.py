"""Rules that compare the ranks of a job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import ProfilerRule, positive, spell_seconds
from stepwatch.rules.step import Step

_SEEN = 0.05
_OWN = ("data", "forward", "backward", "optimizer", "other")
_ADVICE = {
    "data": "look at its share of the data (size of its samples, its storage) and at what else runs on its node",
    "forward": "look at the sizes of its batches, and at its device: clock, temperature, other processes",
    "backward": "look at the sizes of its batches, and at its device: clock, temperature, other processes",
    "optimizer": "look at its share of the parameters, and at its device",
    "other": "look for work that only this rank does: logging, metrics, checkpoints",
}


@dataclass(frozen=True)
class Block:
    """Training steps in a row.

    Attributes:
        steps: those that every rank recorded.
        ranks: the ranks, ascending.
        seconds: what was taken of each, [step, rank, column].
    """

    steps: list[int]
    ranks: list[int]
    seconds: NDArray[np.float64]


class RankBlocks:
    """Collects the training steps of all ranks.

    Args:
        steps: steps in a block, at least 10.
        seconds: time that they must take, at least.

    Attributes:
        ranks: ranks seen.
    """

    def __init__(self, steps: int, seconds: float) -> None:
        if steps < 10:
            raise ValueError(f"steps is {steps}; expected 10 or more")
        self.ranks: set[int] = set()
        self._steps = steps
        self._seconds = positive("seconds", seconds)
        self._open: dict[int, dict[int, tuple[float, ...]]] = {}
        self._elapsed = 0.0

    def add(self, step: Step, columns: tuple[float, ...]) -> Block | None:
        """Take seconds of a rank's step; returns the block that it completes."""
        self.ranks.add(step.rank)
        self._open.setdefault(step.step, {})[step.rank] = columns
        if step.rank != max(self.ranks):
            return None
        self._elapsed += step.timing["duration_ns"] / 1e9
        if self._elapsed < self._seconds or len(self._open) <= self._steps:
            return None
        found, self._open, self._elapsed = self._open, {}, 0.0
        whole = [number for number, ranks in found.items() if len(ranks) == len(self.ranks)]
        if len(whole) < self._steps // 2:
            return None
        ranks = sorted(self.ranks)
        return Block(whole, ranks, np.array([[found[number][rank] for rank in ranks] for number in whole]))


class StragglerRank(ProfilerRule):
    """One rank is slower than the others, which wait for it at every step.

    Ranks that reduce their gradients end a step together, the fast ones after waiting inside ``backward()``. So each
    rank is judged by what it does on its own: data, forward pass, optimizer and the rest, and what of the backward pass
    it did not wait for others, where that was recorded. The straggler is the slowest rank of nearly every step, by a
    good part of the step, against the median of the others.

    Args:
        share: excess over the others as a share of the step that is too much, above 0.
        steps: steps that are judged together, at least 10.
        seconds: time that they must take, at least.
    """

    calibrated = (("share", "higher"),)

    def __init__(self, *, share: float = 0.2, steps: int = 50, seconds: float = 10.0) -> None:
        super().__init__()
        self.share = positive("share", share)
        self.block = steps
        self.seconds = seconds
        self._blocks = RankBlocks(steps, seconds)
        self._judged = 0
        self._highest = 0.0
        self._said: set[int] = set()

    def judge_step(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training or not step.timing.get("duration_ns"):
            return
        block = self._blocks.add(step, _phases(step))
        if block is not None and len(block.ranks) > 1:
            yield from self._judge(block)

    def _judge(self, block: Block) -> Iterator[Finding]:
        self._judged += 1
        ranks = block.ranks
        period = float(np.median(block.seconds[:, :, -1]))
        times = _own_work(block.seconds[:, :, :-2], block.seconds[:, :, -2], period)
        own = times.sum(axis=2)
        slowest = int(np.bincount(own.argmax(axis=1), minlength=len(ranks)).argmax())
        often = float((own.argmax(axis=1) == slowest).mean())
        others = [index for index in range(len(ranks)) if index != slowest]
        excess = np.median(times[:, slowest] - np.median(times[:, others], axis=1), axis=0)
        lost = float(np.median(own[:, slowest] - np.median(own[:, others], axis=1)))
        self._highest = max(self._highest, lost / period if often >= 0.8 else 0.0)
        rank = ranks[slowest]
        if lost < self.share * period or often < 0.8 or rank in self._said:
            return
        self._said.add(rank)
        phase = _OWN[int(excess.argmax())]
        yield self.found(
            first_step=block.steps[0],
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
        if len(self._blocks.ranks) < 2:
            return "steps of one rank only: there is none to compare it with"
        return "" if self._judged else f"fewer than {self.block} steps of all ranks, or of less than {self.seconds:g} s"

    def margin(self) -> float | None:
        """See the base class."""
        return self._highest / self.share if self._judged else None


def _phases(step: Step) -> tuple[float, ...]:
    """Seconds of :data:`_OWN`, of waiting for others, and of the whole."""
    timing = step.timing
    duration, data, forward, backward, optimizer, waited = (
        timing.get(f"{name}_ns", 0) / 1e9
        for name in ("duration", "data", "forward", "backward", "optimizer", "collective")
    )
    other = max(duration - data - forward - backward - optimizer, 0.0)
    return data, forward, backward, optimizer, other, waited, duration


def _own_work(phases: NDArray[np.float64], waited: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """Seconds of :data:`_OWN` that a rank worked on its own; [step, rank, phase], as ``phases``.

    What it waited for others, [step, rank], is taken off its backward pass, in which nearly all of it is, and the rest
    off the forward pass and what else there is. Where hardly any waiting was seen (it is the devices that wait, or
    none was recorded) the whole backward pass may be waiting, and is left out.
    """
    own = phases.copy()
    if np.median(waited.max(axis=1)) < _SEEN * period:
        own[:, :, _OWN.index("backward")] = 0.0
        return own
    for name in ("backward", "forward", "other"):
        phase = own[:, :, _OWN.index(name)]
        taken = np.minimum(phase, waited)
        phase -= taken
        waited = waited - taken
    return own
