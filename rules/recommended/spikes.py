"""Spikes of the training loss: how often, and whether they recover."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import TrainingLoss, median, noise_of, positive, spell, trend_z
from stepwatch.rules.step import Step

_BLOCK = 5  # steps; a batch that is hard by itself is over sooner
_BASELINE = 20  # blocks
_HISTORY = 80  # blocks
_RISING = 3  # blocks that the rise of a spike may take
_SETTLED = 4  # blocks in which the loss must have come down
_KNOWN = 20  # deviations from which on noise is known
_RECOVERED = 0.25  # of the rise that may be left
_AFTER_RESTART = 100  # steps
_HIGHER = 1.5  # than ever before: no restart, another rate
_DIVERGED = 3.0  # of the first loss above it; DivergingLoss says the rest


@dataclass
class _Spike:
    """One of them: where it began, the level before, the limit that it crossed, how high it went and how long it took.

    ``recovered`` is the number of steps after which it had come down, None while it has not.
    """

    first_step: int
    baseline: float
    limit: float
    peak: float
    recovered: int | None = None


class LossSpike(Rule):
    """The training loss jumps up out of its own noise: again and again, or once for good.

    Medians of five losses are compared with the median of the 100 losses before. A spike is one that lies above it by
    more than ``factor`` times the largest such deviation in the 400 steps before (or twice their noise), and by more
    than ``share`` of what the loss has gained since its start, or of its level. One hard batch moves no median of five;
    heavy tails and swings are part of the deviations before. A spike has recovered when no more than a
    ``factor``-th of that rise is left for 20 steps, and after ``patience`` steps when it has lost three quarters of its
    height.

    It fires at the third spike (``spikes``) within ``span`` steps, and at one that has not recovered ``patience`` steps
    after it began and does not come down (Mann-Kendall, z > -2). Spikes in the 100 steps after a schedule has raised
    the learning rate again are the schedule's; a loss that has left by more than three times its start is
    DivergingLoss's.

    Args:
        factor: multiple of the largest deviation before.
        share: part of the gain, or of the level, that a spike must reach.
        spikes: so many are a finding though they recover.
        span: steps within which they lie.
        patience: steps in which one must recover.
    """

    severity = Severity.WARNING
    calibrated = (("factor", "higher"), ("share", "higher"))

    def __init__(
        self, *, factor: float = 3.0, share: float = 0.1, spikes: int = 3, span: int = 2000, patience: int = 200
    ) -> None:
        for name, value in {"factor": factor, "share": share, "spikes": spikes, "span": span}.items():
            positive(name, value)
        if patience < 10 * _BLOCK:
            raise ValueError(f"patience is {patience}; expected {10 * _BLOCK} steps or more")
        self.factor = factor
        self.share = share
        self.spikes = spikes
        self.span = span
        self.patience = patience
        self._loss = TrainingLoss()
        self._restarts = _Restarts()
        self._start = 0.0
        self._levels: deque[float] = deque(maxlen=_BASELINE)
        self._recent: deque[float] = deque(maxlen=_HISTORY)
        self._deviations: deque[float] = deque(maxlen=_HISTORY)
        self._open: _Spike | None = None
        self._excused = False
        self._since: deque[float] = deque(maxlen=max(patience // _BLOCK, _SETTLED))  # levels since the open one began
        self._lasted = 0  # blocks since then
        self._lowest = 0.0  # level since its peak
        self._seen: list[_Spike] = []
        self._said: set[str] = set()
        self._margin = 0.0

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        self._restarts.observe(step)
        value = self._loss.observe(step)
        count = self._loss.count
        if value is None or count % _BLOCK or self._loss.signed:
            return
        block = np.array(self._loss.values[-_BLOCK:])
        if not np.isfinite(block).all():
            return
        level = median(block)
        if count == _BLOCK:
            self._start = level
        if self._open is None:
            began = self._begins(step, level)
        else:
            began = self._jumps_again(step, level, self._open)
            if not began:
                yield from self._follow(step, level, self._open)
        if began and self._repeated(step):
            yield self._say_repeated(step)

    def _begins(self, step: Step, level: float) -> bool:
        """Whether a spike begins; what is none becomes part of the noise."""
        known = len(self._levels) >= _BASELINE // 2
        baseline = median(self._levels) if known else level
        deviation = level - baseline
        if len(self._deviations) >= _KNOWN:
            usual = max(
                *itertools.islice(self._deviations, len(self._deviations) - _RISING), 2 * noise_of(self._recent)
            )
            rise = max(self.factor * usual, self.share * max(self._start - baseline, abs(baseline)))
            self._margin = max(self._margin, min(deviation / rise, 1.0) if rise > 0 else 0.0)
            if deviation > rise > 0:
                self._open_one(baseline, baseline + rise, level)
                return True
        self._levels.append(level)
        self._recent.append(level)
        if known:
            self._deviations.append(deviation)
        return False

    def _jumps_again(self, step: Step, level: float, spike: _Spike) -> bool:
        """Whether it loses half of its height and gains as much before it has recovered: that is the next one."""
        lowest = self._lowest
        half = (spike.peak - spike.baseline) / 2
        if lowest > spike.baseline + half or level - lowest <= max(half, spike.limit - spike.baseline):
            return False
        self._open_one(spike.baseline, spike.limit, level)
        return True

    def _open_one(self, baseline: float, limit: float, level: float) -> None:
        first = self._loss.steps[-_BLOCK]
        self._open = _Spike(first, baseline, limit, level)
        self._since.clear()
        self._since.append(level)
        self._lasted, self._lowest = 1, level
        self._excused = first - self._restarts.last < _AFTER_RESTART
        if not self._excused:
            self._seen.append(self._open)

    def _follow(self, step: Step, level: float, spike: _Spike) -> Iterator[Finding]:
        """Whether the open one has come down."""
        self._lowest = level if level > spike.peak else min(self._lowest, level)
        spike.peak = max(spike.peak, level)
        self._since.append(level)
        self._lasted += 1
        lasted = self._lasted * _BLOCK
        mostly = lasted >= self.patience and level < spike.baseline + _RECOVERED * (spike.peak - spike.baseline)
        low = spike.baseline + (spike.limit - spike.baseline) / self.factor
        if mostly or max(list(self._since)[-_SETTLED:]) < low:
            spike.recovered = step.step - spike.first_step
            self._open = None
            self._levels.append(level)
            return
        left = level > self._start + _DIVERGED * abs(self._start)
        if lasted < self.patience or self._excused or left or "lasting" in self._said:
            return
        recent = list(self._since)[-self.patience // _BLOCK // 2 :]
        if trend_z(recent) > -2:
            self._said.add("lasting")
            yield self._say(
                step,
                [spike],
                value=float(np.median(recent)),
                message=f"the training loss jumped from {spell(spike.baseline)} to {spell(spike.peak)} at step "
                f"{spike.first_step} and stands at {spell(np.median(recent))} {lasted} steps later",
            )

    def _repeated(self, step: Step) -> bool:
        recent = [spike for spike in self._seen if spike.first_step > step.step - self.span]
        return len(recent) >= self.spikes and "repeated" not in self._said

    def _say_repeated(self, step: Step) -> Finding:
        self._said.add("repeated")
        recent = self._seen[-self.spikes :]
        steps = [spike.first_step for spike in recent]
        gaps = np.diff(steps)
        regular = len(gaps) > 1 and gaps.max() - gaps.min() <= 0.1 * gaps.mean()
        when = ", ".join(map(str, steps)) + (f" (every {gaps.mean():.0f})" if regular else "")
        peak = max(spike.peak for spike in recent)
        return self._say(
            step,
            recent,
            value=peak,
            message=f"the training loss has jumped up {len(recent)} times, at steps {when}, to {spell(peak)} from "
            f"{spell(recent[-1].baseline)}, far outside its noise",
        )

    def _say(self, step: Step, spikes: list[_Spike], *, value: float, message: str) -> Finding:
        told = [
            {"first_step": each.first_step, "peak": each.peak, "recovered_after": each.recovered} for each in spikes
        ]
        return self.finding(
            step,
            first_step=spikes[0].first_step,
            tensors=[self._loss.name],
            value=value,
            threshold=spikes[-1].limit,
            message=message,
            suggestion="look at the batches of those steps (leave them out, or clip gradients by norm); a lower "
            "learning rate or a longer warm-up, with Adam a smaller beta2 or a larger epsilon, keep spikes away; where "
            "the jump lasts, go back to a checkpoint from before it; at regular steps, shuffle the data",
            evidence={"series": [self._loss.name], "unit": "loss", "spikes": told},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        needed = (_BASELINE // 2 + _KNOWN + 1) * _BLOCK
        closest = self._loss.name
        if self._seen:
            last = self._seen[-1]
            end = "not recovered" if last.recovered is None else f"recovered after {last.recovered} steps"
            closest = f"{self._loss.name}, {len(self._seen)} so far, the last at step {last.first_step}, {end}"
        return self._loss.coverage(needed, self._margin, closest, progress=True)


class _Restarts:
    """When a schedule last raised the learning rate again, after having lowered it; -infinity where it never did."""

    def __init__(self) -> None:
        self.last = -math.inf
        self._highest = 0.0
        self._lowest_since = math.inf

    def observe(self, step: Step) -> None:
        """Take note of a step's rates."""
        rates = [value for name, value in step.scalars.items() if name.startswith("learning_rate")]
        if not rates:
            return
        rate = max(rates)
        if rate >= self._highest:
            if 2 * self._lowest_since < rate <= _HIGHER * self._highest:
                self.last = step.step
            self._highest, self._lowest_since = rate, rate
        elif rate > 2 * self._lowest_since:
            self.last, self._lowest_since = step.step, rate
        else:
            self._lowest_since = min(self._lowest_since, rate)
