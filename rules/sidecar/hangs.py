"""Ranks that have stopped moving, and what holds them."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stepwatch.probe.store.profile_requests import read_profile_answer
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.stacks import dump_stacks, innermost, read_beat

RULE = "Hang"
SHORTEST_SECONDS = 30.0
_FACTOR = 5.0
_PATIENCE = 1800.0  # while a graph is compiled or a checkpoint is written, and before the first steps
_MIN_STEPS = 10
_LOOK_SECONDS = 1.0
_COMPUTING = ("forward", "backward", "optimizer", "collective")
_PLACES = {
    "script": "in the script's own code",
    "loader": "waiting for a batch",
    "collective": "waiting for other ranks",
}
_LAST_STEPS = 1000
_COMPILERS = re.compile(r"/(torch/_dynamo|torch/_inductor|triton|torch_xla)/")


@dataclass
class _Rank:
    """What is known of a rank.

    Attributes:
        moved: when it was last seen to have recorded something, by this process's clock.
        beat: its latest.
        seen: when that was first seen.
        due: when it is to be looked at.
    """

    moved: float
    beat: dict[str, Any] = field(default_factory=dict)
    seen: float = 0.0
    due: float = field(init=False)

    def __post_init__(self) -> None:
        self.due = self.moved + SHORTEST_SECONDS

    def still(self, now: float) -> float:
        """Seconds for which it has done nothing: as it said itself, and since then, if it says nothing more."""
        return float(self.beat.get("still_seconds", 0.0)) + now - self.seen


class HangWatch:
    """Finds ranks that have done nothing for longer than their own steps account for.

    A rank moves when it finishes a phase of a step: a forward pass in an evaluation is one. The limit is five times
    the 99th percentile of its latest steps, at least half a minute. It is half an hour before the tenth step, while
    ``torch.save`` runs, and while a graph is compiled. Only differences of one clock are used, never two clocks.

    Args:
        trace: the run.
        clock: seconds, monotonic.
    """

    def __init__(self, trace: Trace, clock: Callable[[], float] = time.monotonic) -> None:
        self._trace = trace
        self._clock = clock
        self._ranks: dict[int, _Rank] = {}
        self._said: set[tuple[int, int]] = set()
        self._looked = clock()

    def look_beside(self, found: Sequence[Finding], ranks: Iterable[int], moved: Iterable[int]) -> list[Finding]:
        """What rules have found, and what is found now; of a hang that is known rules need not tell again.

        They know only that no step has ended, not which rank stands where.
        """
        standing = self.look(ranks, moved)
        return [*(finding for finding in found if finding.rule != RULE or not self._is_known()), *standing]

    def _is_known(self) -> bool:
        """Whether a rank still stands where it was found to stand still."""
        steps = {rank: read_beat(self._trace.path, rank).get("step") for rank, _ in self._said}
        return any(steps[rank] == step for rank, step in self._said)

    def look(self, ranks: Iterable[int], moved: Iterable[int]) -> list[Finding]:
        """What is found now; looks at most once a second.

        Args:
            ranks: all ranks of the run.
            moved: those that have recorded steps since the last look.
        """
        now = self._clock()
        for rank in moved:
            self._ranks[rank] = _Rank(now)
        if now - self._looked < _LOOK_SECONDS:
            return []
        self._looked = now
        due = [rank for rank in ranks if self._ranks.setdefault(rank, _Rank(now)).due <= now]
        hanging = [rank for rank in due if self._trace.end(rank) is None and self._hangs(rank, now)]
        if all((rank, self._step(rank)) in self._said for rank in hanging):
            return []
        stacks = {rank: dump_stacks(self._trace, rank, self._ranks[rank].beat) for rank in hanging}
        hanging = [rank for rank in hanging if not self._compiles(rank, stacks[rank], now)]
        if not hanging:
            return []
        self._said |= {(rank, self._step(rank)) for rank in hanging}
        return [self._finding(self._culprit(hanging), hanging, stacks, now)]

    def _hangs(self, rank: int, now: float) -> bool:
        known = self._ranks[rank]
        beat = read_beat(self._trace.path, rank)
        if beat != known.beat:
            known.beat, known.seen = beat, now
        left = self._limit(rank, str(beat.get("phase"))) - known.still(now) if beat else SHORTEST_SECONDS
        known.due = now + left  # sooner it cannot have stood still for long enough
        return left < 0

    def _limit(self, rank: int, phase: str) -> float:
        if phase == "checkpoint" or self._is_profiled():
            return _PATIENCE
        last = int(self._ranks[rank].beat.get("step", 0))
        rows = self._trace.table("steps", columns=["duration_ns"], ranks=[rank], steps=(last - _LAST_STEPS, None))
        seconds = rows["duration_ns"].drop_null().to_numpy() / 1e9
        if len(seconds) < _MIN_STEPS:
            return _PATIENCE
        return max(SHORTEST_SECONDS, _FACTOR * float(np.percentile(seconds, 99)))

    def _is_profiled(self) -> bool:
        """Whether a rank starts, runs or stops torch.profiler, for which the others may wait."""
        answers = (read_profile_answer(self._trace.path, rank) for rank in self._trace.ranks)
        return any(answer is not None and answer.state == "running" for answer in answers)

    def _compiles(self, rank: int, stacks: str, now: float) -> bool:
        return bool(_COMPILERS.search(stacks)) and self._ranks[rank].still(now) < _PATIENCE

    def _step(self, rank: int) -> int:
        return int(self._ranks[rank].beat.get("step", 0))

    def _culprit(self, hanging: Sequence[int]) -> int:
        """The rank that the others wait for.

        Of those furthest behind one that waits for no rank itself, is elsewhere than most, and in the earliest phase.
        """
        behind = min(map(self._step, hanging))
        phases = {rank: str(self._ranks[rank].beat.get("phase")) for rank in hanging}
        common = Counter(phases.values())

        def key(rank: int) -> tuple[bool, int, int, int]:
            phase = phases[rank]
            order = _COMPUTING.index(phase) + 1 if phase in _COMPUTING else 0
            return phase == "collective", common[phase], order, rank

        return min((rank for rank in hanging if self._step(rank) == behind), key=key)

    def _finding(self, rank: int, hanging: Sequence[int], stacks: dict[int, str], now: float) -> Finding:
        known = self._ranks[rank]
        phase, step = str(known.beat.get("phase")), self._step(rank)
        seconds, limit = known.still(now), self._limit(rank, phase)
        where = _PLACES.get(phase, f"in {phase}")
        others = sorted(set(hanging) - {rank})
        waiting = f"; ranks {', '.join(map(str, others))} stand still as well" if others else ""
        return Finding(
            rule=RULE,
            # Elsewhere the script may be at work on something of its own, or on a slow disk.
            severity=Severity.ERROR if phase in _COMPUTING else Severity.WARNING,
            first_step=step,
            last_step=step,
            tensors=(),
            value=seconds,
            threshold=limit,
            message=f"rank {rank} has stood still for {seconds:.0f} s at step {step}, {where}{waiting}",
            suggestion=f"look at its stack: {innermost(stacks[rank]) or 'it could not be had'}",
            evidence={"phase": phase, "ranks": list(hanging), "stacks": {str(r): text for r, text in stacks.items()}},
            rank=rank,
        )
