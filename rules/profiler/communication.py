"""Rules about what ranks exchange."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import ProfilerRule, positive
from stepwatch.rules.profiler.ranks import Block, RankBlocks
from stepwatch.rules.step import Step

_USUALLY = 0.8
_ADVICE = {
    "transfer": "exchange less: gradient accumulation under no_sync(), bf16_compress_hook, larger batches; and check "
    "that the fast interface is used (NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)",
    "straggler": "find what that rank does alone (StragglerRank names the phase): its share of the data, its device, "
    "what else runs on its node",
    "turns": "give the ranks batches of equal cost: bucket samples by length, the same number for every rank",
    "unknown": "record every rank (ranks='all'), which tells a slow network from a slow rank",
}


class CommunicationBound(ProfilerRule):
    """A large part of the step is spent in collectives, waiting for other ranks or for the network.

    The rank that comes last to a collective waits for nobody: what it spends there is the transfer. What the others
    spend beyond that is waiting for it. So a slow network is told from a slow rank, and one that is always last from
    ranks that take turns. Judged by medians over steps: a pause in which one rank evaluates or saves does not count.
    Where the device's own times are recorded (about one step in a second), they are what counts: under NCCL the host
    hardly waits.

    Args:
        share: share of the step that is too much, above 0.
        steps: steps that are judged together, at least 10.
        seconds: time that they must take, at least.
    """

    calibrated = (("share", "higher"),)

    def __init__(self, *, share: float = 0.4, steps: int = 50, seconds: float = 30.0) -> None:
        super().__init__()
        self.share = positive("share", share)
        self.block = steps
        self.seconds = seconds
        self._blocks = RankBlocks(steps, seconds)
        self._on_device: RankBlocks | None = None
        self._recorded = False
        self._judged = 0
        self._highest = 0.0
        self._said = False

    def judge_step(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        waited, on_device = (step.timing.get(name) for name in ("collective_ns", "device_collective_ns"))
        if not step.training or not step.timing.get("duration_ns"):
            return
        if on_device is not None and self._on_device is None:
            self._on_device = RankBlocks(self.block, step.timing["duration_ns"] / 1e9)
        known = waited if self._on_device is None else on_device
        if known is None:
            return
        self._recorded = True
        longest = max(known, waited or 0) / 1e9
        block = (self._on_device or self._blocks).add(step, (longest, step.timing["duration_ns"] / 1e9))
        if block is not None:
            yield from self._judge(block)

    def _judge(self, block: Block) -> Iterator[Finding]:
        self._judged += 1
        waited, durations = block.seconds[:, :, 0], block.seconds[:, :, 1]
        by_rank = np.median(waited / durations, axis=0)
        share = float(np.median((waited / durations).mean(axis=1)))
        self._highest = max(self._highest, share)
        if share < self.share or self._said:
            return
        self._said = True
        transfer = float(np.median(waited.min(axis=1) / durations.mean(axis=1)))
        lasts = np.bincount(waited.argmin(axis=1), minlength=len(block.ranks)) / len(waited)
        last, often = block.ranks[int(lasts.argmax())], float(lasts.max())
        if len(block.ranks) < 2:
            cause, why = "unknown", "one rank only was recorded, which does not tell a slow network from a slow rank"
        elif transfer >= share / 2:
            cause = "transfer"
            why = f"even the rank that comes last spends {100 * transfer:.0f} % there, so it is the transfer"
        elif often >= _USUALLY:
            cause, why = "straggler", f"the others wait for rank {last}, the last in {100 * often:.0f} % of the steps"
        else:
            cause, why = (
                "turns",
                f"they wait for each other in turns (rank {last} is last in {100 * often:.0f} %)",
            )
        yield self.found(
            first_step=block.steps[0],
            rank=last if cause == "straggler" else None,
            value=share,
            threshold=self.share,
            message=f"{100 * share:.0f} % of the step is spent in collectives; {why}",
            suggestion=_ADVICE[cause],
            evidence={
                "cause": cause,
                "share_by_rank": {str(rank): float(part) for rank, part in zip(block.ranks, by_rank, strict=True)},
                "transfer_share": transfer,
                "last_rank": last,
                "last_of_steps": often,
            },
        )

    def missing(self) -> str:
        """See the base class."""
        if not self._recorded:
            return "no step waited in a collective: one rank, or collectives that are not seen"
        return "" if self._judged else f"fewer than {self.block} steps of all ranks, or of less than {self.seconds:g} s"

    def margin(self) -> float | None:
        """See the base class."""
        return self._highest / self.share if self._judged else None
