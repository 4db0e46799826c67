"""Rules about how steps follow each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.profiler.base import ProfilerRule, Sample, Thinned, end_ns, positive, spell_seconds
from stepwatch.rules.profiler.processors import BesideOthers, Mark
from stepwatch.rules.step import Step

PHASES = ("data_ns", "forward_ns", "backward_ns", "optimizer_ns")
_WARM_UP_STEPS = 20
_BLOCKS = 4
_LEVEL = 1.2


class Hang(ProfilerRule):
    """No step has ended for much longer than ever before, while the process lives on.

    Every pass of a recorded model counts as progress, evaluations too. The clock is the machine's samples. Beside a
    live run the sidecar looks for ranks that stand still by itself, finds them sooner, and tells of them once.

    Args:
        seconds: silence that is too long, at least.
        factor: times the longest pause between steps before it that it must be.
    """

    severity = Severity.ERROR
    metrics = None

    def __init__(self, *, seconds: float = 900.0, factor: float = 5.0) -> None:
        super().__init__()
        self.seconds = positive("seconds", seconds)
        self.factor = positive("factor", factor)
        self.moments = Thinned(seconds)
        self._last: dict[int, tuple[int, int]] = {}
        self._latest = 0
        self._longest = 0.0
        self._progress = 0
        self._clock = False
        self._said = False
        self._nearest = 0.0

    def judge_step(self, step: Step) -> None:
        """See the base class."""
        end = end_ns(step)
        if self._latest:
            self._longest = max(self._longest, (end - self._latest) / 1e9)
        self._latest = max(self._latest, end)
        self._progress += 1
        self._last[step.rank] = (step.step, end)
        self._said = False

    def judge_sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        self._clock = True
        if self._progress < 2 or not self.due(sample):
            return
        silence = (sample.time_ns - self._latest) / 1e9
        limit = max(self.seconds, self.factor * self._longest)
        self._nearest = max(self._nearest, silence / limit)
        if silence < limit or self._said:
            return
        self._said = True
        behind = min(step for step, _ in self._last.values())
        late = sorted(rank for rank, (step, _) in self._last.items() if step == behind)
        who = ""
        if len(self._last) > 1 and len(late) < len(self._last):
            ranks = ", ".join(map(str, late[:8]))
            who = f"; rank{'s' if len(late) > 1 else ''} {ranks} got no further than step {behind}"
        yield self.found(
            first_step=behind,
            rank=late[0],
            value=silence,
            threshold=limit,
            message=f"no step has ended for {spell_seconds(silence)}; the longest pause before was "
            f"{spell_seconds(self._longest)}{who}",
            suggestion="see where it stands: py-spy dump --pid PID for every rank; a collective that one rank leaves "
            "out, a data loader's worker that died and a file system that does not answer are the usual causes",
        )

    def missing(self) -> str:
        """See the base class."""
        if self._progress < 2:
            return "no steps were recorded"
        return "" if self._clock else "the machine was not sampled: there is no clock beside the steps"

    def margin(self) -> float | None:
        """See the base class."""
        return self._nearest if self._clock and self._progress > 1 else None


@dataclass
class _Block:
    """Steps in a row of one rank: seconds each, and by phase."""

    first_step: int
    began_ns: int
    since: Mark
    durations: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    entries: list[int] = field(default_factory=list)

    def median(self, phase: str) -> float:
        return float(np.median(self.phases[phase]))


class StepTimeDrift(BesideOthers):
    """Steps take longer and longer, or have become slow and stayed so.

    Blocks of steps are compared with the first one after the warm-up. A block counts as slow when its median is
    ``factor`` times as long and three quarters of its steps are slower than three quarters of the first's; two or more
    in a row, over a minute, make a finding. What a job means to do is none: batches that have grown (attention takes
    their square), and a backward pass that has become longer once while the forward pass has not: more layers are
    trained. What a block lost because other processes had the processors is taken off it.

    Args:
        factor: times as long, above 1.
        steps: steps in a block, at least 10.
        seconds: how long it must last; a block lasts a quarter of it at least.
    """

    calibrated = (("factor", "higher"),)

    def __init__(self, *, factor: float = 1.5, steps: int = 100, seconds: float = 60.0) -> None:
        super().__init__(positive("seconds", seconds))
        if factor <= 1:
            raise ValueError(f"factor is {factor}; expected more than 1")
        if steps < 10:
            raise ValueError(f"steps is {steps}; expected 10 or more")
        self.factor = factor
        self.block = steps
        self.seconds = seconds
        self._seen: dict[int, int] = {}
        self._open: dict[int, _Block] = {}
        self._first: dict[int, _Block] = {}
        self._slow: dict[int, list[_Block]] = {}
        self._judged = 0
        self._highest = 0.0
        self._said = False

    def judge_step(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        duration = step.timing.get("duration_ns", 0)
        if not step.training or not duration:
            return
        seen = self._seen[step.rank] = self._seen.get(step.rank, 0) + 1
        if seen <= _WARM_UP_STEPS:
            return
        block = self._open.get(step.rank)
        if block is None:
            began = end_ns(step) - duration
            block = self._open[step.rank] = _Block(step.step, began, self.processors.mark())
        block.durations.append(duration / 1e9)
        for phase in PHASES:
            block.phases[phase].append(step.timing.get(phase, 0) / 1e9)
        block.entries.append(step.timing.get("batch_entries", 0))
        if len(block.durations) >= self.block and end_ns(step) - block.began_ns >= self.seconds * 1e9 / _BLOCKS:
            del self._open[step.rank]
            yield from self._judge(step, block)

    def _judge(self, step: Step, block: _Block) -> Iterator[Finding]:
        if step.rank not in self._first:
            self._first[step.rank] = block
            return
        first = self._first[step.rank]
        self._judged += 1
        before, now = float(np.median(first.durations)), float(np.median(block.durations))
        apart = np.percentile(block.durations, 25) > np.percentile(first.durations, 75)
        usual = before * _growth(first, block) ** 2
        use = self.processors.since(block.since)
        ratio = now / usual * (1.0 - use.lost if use is not None else 1.0)
        slow = self._slow.setdefault(step.rank, [])
        if not apart or ratio <= self.factor:
            self._highest = max(self._highest, min(ratio, self.factor))
            slow.clear()
            return
        slow.append(block)
        self._highest = max(self._highest, ratio)
        lasting = (end_ns(step) - slow[0].began_ns) / 1e9
        if len(slow) < 2 or self._said or lasting < self.seconds or _trains_more(first, slow):
            return
        self._said = True
        grown = {phase: block.median(phase) - first.median(phase) for phase in PHASES}
        grown["other_ns"] = now - before - sum(grown.values())
        worst = max(grown, key=grown.__getitem__)
        yield self.found(
            first_step=slow[0].first_step,
            rank=step.rank,
            value=now / before,
            threshold=self.factor,
            message=f"a step takes {spell_seconds(now)}, {now / before:.2g} times as long as at the beginning "
            f"({spell_seconds(before)}); most of it is lost in {_SPOKEN[worst]} (+{spell_seconds(grown[worst])})",
            suggestion=_ADVICE[worst],
            evidence={"phase": worst.removesuffix("_ns"), "before_seconds": before, "now_seconds": now},
        )

    def missing(self) -> str:
        """See the base class."""
        if self._judged:
            return ""
        needed = f"{_WARM_UP_STEPS + 2 * self.block}, over {spell_seconds(self.seconds / 2)}"
        return f"{max(self._seen.values(), default=0)} timed training steps; at least {needed}, are needed"

    def margin(self) -> float | None:
        """See the base class."""
        return self._highest / self.factor if self._judged else None


def _growth(first: _Block, block: _Block) -> float:
    """Times as large as the first ones the batches are, 1 where they are not larger or their size is not known."""
    before, now = float(np.median(first.entries)), float(np.median(block.entries))
    return max(now / before, 1.0) if before else 1.0


def _trains_more(first: _Block, slow: list[_Block]) -> bool:
    """Whether the backward pass has become longer once and the forward pass has not, as when layers are unfrozen."""
    now = slow[-1]
    grown = {phase: now.median(phase) - first.median(phase) for phase in PHASES}
    return (
        max(grown, key=grown.__getitem__) == "backward_ns"
        and now.median("forward_ns") <= _LEVEL * first.median("forward_ns")
        and now.median("backward_ns") <= _LEVEL * slow[0].median("backward_ns")
    )


class SlowCheckpointing(ProfilerRule):
    """Writing checkpoints takes a large part of the time.

    Args:
        share: share of the time that is too much, above 0.
        checkpoints: so many must have been written.
        seconds: time of training that is judged, at least.
    """

    calibrated = (("share", "higher"),)

    def __init__(self, *, share: float = 0.1, checkpoints: int = 3, seconds: float = 300.0) -> None:
        super().__init__()
        self.share = positive("share", share)
        self.checkpoints = checkpoints
        self.seconds = positive("seconds", seconds)
        self._written: dict[int, int] = {}
        self._writing: dict[int, float] = {}
        self._whole: dict[int, float] = {}
        self._first: dict[int, int] = {}
        self._highest = 0.0
        self._said = False

    def judge_step(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        duration = step.timing.get("duration_ns", 0)
        if not duration:
            return
        rank = step.rank
        whole = self._whole[rank] = self._whole.get(rank, 0.0) + duration / 1e9
        taken = step.timing.get("checkpoint_ns")
        if taken is None:
            return
        self._first.setdefault(rank, step.step)
        written = self._written[rank] = self._written.get(rank, 0) + 1
        writing = self._writing[rank] = self._writing.get(rank, 0.0) + taken / 1e9
        if whole < self.seconds or written < self.checkpoints:
            return
        share = writing / whole
        self._highest = max(self._highest, share)
        if share >= self.share and not self._said:
            self._said = True
            yield self.found(
                first_step=self._first[rank],
                rank=rank,
                value=share,
                threshold=self.share,
                message=f"{100 * share:.0f} % of the time goes into writing checkpoints: "
                f"{spell_seconds(writing / written)} for each of {written}",
                suggestion="write them less often, to a local disk first, or asynchronously "
                "(torch.distributed.checkpoint.async_save); save the optimizer's state only where a resume needs it",
            )

    def missing(self) -> str:
        """See the base class."""
        seconds = max(self._whole.values(), default=0.0)
        if seconds < self.seconds:
            return f"{spell_seconds(seconds)} of training; at least {spell_seconds(self.seconds)} are needed"
        return ""

    def margin(self) -> float | None:
        """See the base class."""
        return self._highest / self.share


_SPOKEN = {
    "data_ns": "the part before the forward pass (data)",
    "forward_ns": "the forward pass",
    "backward_ns": "the backward pass",
    "optimizer_ns": "the optimizer's step",
    "other_ns": "what is left beside the phases (losses, metrics, logging)",
}
_ADVICE = {
    "data_ns": "look at what the script does between two steps: a list that grows, a cache that is full, files that "
    "are read from further away",
    "forward_ns": "look at what grows in the model's forward pass: sequence lengths, a cache, recompilation "
    "(TORCH_LOGS=recompiles); or at a device that has become hot or is shared",
    "backward_ns": "look for a graph that is kept from step to step (a loss that is summed without detach()), and on "
    "several ranks for a rank that has become slow",
    "optimizer_ns": "look at the optimizer's state and at the memory of the device: swapping to the host is slow",
    "other_ns": "look for metrics that are computed over ever more values, and for logging",
}
