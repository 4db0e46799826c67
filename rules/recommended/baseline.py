"""A rule that holds a run against another one, that went as it should."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import TrainingLoss, due, noise_of, positive, spell
from stepwatch.rules.step import Step

_EVERY = 50  # steps between two looks
_FIRST = 2  # times the steps that are compared together, before anything is said
_SIGMAS = 6.0
_CATCHING_UP = 0.9  # of the distance at the look before
_NO_BASELINE = "a baseline: mark one in the directory of the runs (stepwatch tag RUN --baseline), or name it"


class WorseThanBaseline(Rule):
    """The training loss has fallen behind that of the baseline run at the same steps, by more than the noise.

    Every 50 steps the medians of the two losses over the last ``steps`` steps that both runs have are compared. It
    fires where this run's is higher by more than ``share`` of what the baseline had gained since its start, or of its
    level where that is more, and by more than six standard errors of the difference, at two looks in a row between
    which it did not catch up by a tenth. The baseline is the run that ``stepwatch tag --baseline`` has marked in the
    directory in which this one lies, where none is named; it has ended.

    Args:
        baseline: directory of the baseline run.
        share: how much worse is worse, as a share of what the baseline gained.
        steps: steps that are compared together, at least 20.
    """

    severity = Severity.WARNING
    calibrated = (("share", "higher"),)

    def __init__(self, *, baseline: str = "", share: float = 0.1, steps: int = 100) -> None:
        positive("share", share)
        if steps < 20:
            raise ValueError(f"steps is {steps}; expected 20 or more")
        if baseline:
            try:
                Trace(baseline)
            except TraceError as error:
                raise ValueError(f"baseline: {error}") from None
        self.baseline = baseline
        self.share = share
        self.steps = steps
        self._loss = TrainingLoss()
        self._other: dict[int, float] | None = None
        self._behind: float | None = None  # at the look before, where that was too far
        self._looks = 0
        self._margin = 0.0
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training or self._fired or not self.baseline:
            return
        if self._loss.observe(step) is None or self._loss.several or not due(self._loss.count, _EVERY):
            return
        if self._other is None:
            self._other = _losses_of(self.baseline, self._loss.name, step.rank)
        yield from self._judge(step, self._other)

    def _judge(self, step: Step, other: dict[int, float]) -> Iterator[Finding]:
        here = dict(zip(self._loss.steps, self._loss.values, strict=True))
        common = sorted(here.keys() & other.keys())
        if len(common) < _FIRST * self.steps or common[-1] < step.step - _EVERY:
            return
        self._looks += 1
        mine, theirs = (_values(series, common[-self.steps :]) for series in (here, other))
        start = float(np.median(_values(other, common[:5])))
        if not (np.isfinite(mine).all() and np.isfinite(theirs).all()):
            return  # DivergingLoss and ExplodingTensor say so
        level, expected = float(np.median(mine)), float(np.median(theirs))
        error = 1.25 * math.sqrt((noise_of(mine) ** 2 + noise_of(theirs) ** 2) / self.steps)
        limit = max(self.share * max(start - expected, abs(expected)), _SIGMAS * error)
        behind = level - expected
        self._margin = max(self._margin, min(behind / limit, 1.0)) if limit > 0 else self._margin
        worse, before = behind > limit > 0, self._behind
        self._behind = behind if worse else None
        if not worse or before is None or behind < _CATCHING_UP * before:
            return
        self._fired = True
        yield self.finding(
            step,
            first_step=common[-self.steps],
            tensors=[self._loss.name],
            value=level,
            threshold=expected + limit,
            message=f"the training loss is {spell(level)} over the last {self.steps} steps; that of the baseline "
            f"{self.baseline} was {spell(expected)} at the same steps, and this run does not catch up",
            suggestion="see what changed: stepwatch compare names what differs in configuration, versions and data, "
            "and the first tensor that differs",
            evidence={"series": [self._loss.name], "unit": "loss", "baseline": self.baseline},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        coverage = self._loss.coverage(_FIRST * self.steps, self._margin, self._loss.name)
        missing = list(coverage.missing) if self.baseline else [_NO_BASELINE]
        if not missing and not self._looks:
            missing.append(f"{_FIRST * self.steps} steps with {self._loss.name} that the baseline has as well")
        coverage.missing, coverage.decided = tuple(missing), not missing
        return coverage


def _losses_of(run: str, name: str, rank: int) -> dict[int, float]:
    """A training loss of a run by step: of the same rank, or of its first where it has none of that number."""
    trace = Trace(run)
    ranks = [rank] if rank in trace.ranks else trace.ranks[:1]
    rows = trace.table("scalars", names=[name], modes=["TRAIN", "GLOBAL"], ranks=ranks)
    return dict(zip(rows["step"].to_pylist(), rows["value"].to_pylist(), strict=True))


def _values(series: dict[int, float], steps: list[int]) -> NDArray[np.float64]:
    return np.array([series[step] for step in steps])
