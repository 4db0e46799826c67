"""A rule about weights that go on growing when there is nothing left to learn from it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import History
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import TrainingLoss, block_medians, due, spell, trend_z
from stepwatch.rules.step import Stats, Step, TensorSet

_EVERY = 50  # steps between two looks
_BLOCKS = 8  # into which the later half of the run is cut
_SAVED = 2 * _BLOCKS  # saved steps in it, at least
_GAIN = 0.02  # of its level that the loss must gain to be worth something
_LEARNED = 0.1  # of its start that the loss must have lost before
_NAMED = 6
_KEPT = 512


class WeightNormGrowth(Rule):
    """The norm of all weights grows and grows, and the loss gains nothing by it.

    The later half of the run so far is looked at in 8 stretches. It fires where the norm of all weights was larger in
    each stretch than in the one before, is ``factor`` times as large at its end as at its beginning, and grows no
    slower in the second four stretches than in the first, while the training loss, which had fallen by a tenth before,
    has not fallen by 2 % and shows no falling trend (Mann-Kendall, z > -1.5). Healthy weights grow, too: behind a
    normalisation like the root of the number of steps, under a cross entropy that is nearly zero like its logarithm,
    both ever slower. While a schedule raises the learning rate nothing is judged.

    Args:
        factor: growth of the norm over the later half of the run, above 1.
        min_steps: steps before it judges, at least 100.
    """

    severity = Severity.WARNING
    calibrated = (("factor", "higher"),)

    def __init__(self, *, factor: float = 1.5, min_steps: int = 400) -> None:
        if not factor > 1:
            raise ValueError(f"factor is {factor}; expected more than 1")
        if min_steps < 100:
            raise ValueError(f"min_steps is {min_steps}; expected 100 or more")
        self.factor = factor
        self.min_steps = min_steps
        self._loss = TrainingLoss()
        self._rates: History[float] = History("d", _KEPT)
        self._saved: History[int] = History("q", _KEPT)  # number of losses before each
        self._norms: History[float] = History("d", _KEPT)
        self._of_each: list[tuple[TensorSet, NDArray[np.float64]]] = []  # at the 1st, 2nd, 4th, 8th ... saved step
        self._latest: tuple[TensorSet, NDArray[np.float64]] | None = None
        self._steps: History[int] = History("q", _KEPT)
        self._margin = 0.0
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training or self._fired:
            return
        if step.stats is not None:
            self._weigh(step, step.stats)
        if self._loss.observe(step) is None:
            return
        rates = [value for name, value in step.scalars.items() if name.startswith("learning_rate")]
        self._rates.append(max(rates, default=0.0))
        count = self._loss.count
        if count >= self.min_steps and due(count, _EVERY) and not self._loss.signed:
            yield from self._judge(step, count)

    def _weigh(self, step: Step, stats: Stats) -> None:
        rows = stats.tensors.rows("weights")
        if len(rows):
            norms = stats.l2[rows]
            self._saved.append(self._loss.count)
            self._steps.append(step.step)
            self._norms.append(float(np.sqrt((norms**2).sum())))
            self._latest = stats.tensors, norms
            if not len(self._norms) & (len(self._norms) - 1):
                self._of_each.append(self._latest)

    def _judge(self, step: Step, count: int) -> Iterator[Finding]:
        begin = int(np.searchsorted(self._saved, count // 2))
        if len(self._norms) - begin < _SAVED:
            return
        norms, losses = np.array(self._norms[begin:]), np.array(self._loss.values)
        if not (np.isfinite(norms).all() and np.isfinite(losses).all() and norms[0] > 0):
            return
        growth = block_medians(norms, _BLOCKS)
        steady = bool((np.diff(growth) > 0).all())
        half = _BLOCKS // 2
        slowing = growth[-1] - growth[half] < growth[half - 1] - growth[0]
        ratio = float(norms[-1] / norms[0])
        flat, start, level = self._gains_nothing(losses)
        if not steady or slowing or not flat or self._rate_rises(count):
            return
        self._margin = max(self._margin, min((ratio - 1) / (self.factor - 1), 1.0))
        if ratio < self.factor:
            return
        self._fired = True
        names = self._grown_most()
        yield self.finding(
            step,
            first_step=self._steps[begin],
            tensors=names,
            value=ratio,
            threshold=self.factor,
            message=f"the norm of the weights has grown from {spell(norms[0])} to {spell(norms[-1])} since step "
            f"{self._steps[begin]}, steadily and no slower than before, and the loss is {spell(level)} after "
            f"{spell(start)}: nothing holds the weights, and nothing is gained",
            suggestion="check the sign and the size of weight decay and of penalties on weights; add weight decay, "
            "lower the learning rate, or stop where the loss stopped",
            evidence={"series": names, "column": "l2", "unit": "norm"},
        )

    def _gains_nothing(self, losses: NDArray[np.float64]) -> tuple[bool, float, float]:
        """Whether the later half of the run gained nothing after the earlier did; the loss at its beginning and end."""
        later = block_medians(losses[len(losses) // 2 :], _BLOCKS)
        first, start, level = float(np.median(losses[:5])), float(later[0]), float(later[-1])
        learned = first - start > _LEARNED * abs(first)
        return learned and start - level < _GAIN * abs(start) and trend_z(later) > -1.5, start, level

    def _rate_rises(self, count: int) -> bool:
        earlier, later = self._rates[: count // 2], self._rates[count // 2 :]
        return max(later) > max(earlier) or max(later) > 2 * later[0]

    def _grown_most(self) -> list[str]:
        """Names of the weights that have grown most since about the middle of the run."""
        assert self._latest is not None
        tensors, now = self._latest
        names = [tensors.names[row] for row in tensors.rows("weights")]
        earlier, before = self._of_each[-2 if len(self._of_each) > 1 else -1]
        grown = now**2 - before**2 if earlier is tensors else now**2
        return [names[index] for index in np.argsort(-grown, kind="stable")[:_NAMED]]

    def coverage(self) -> Coverage:
        """See the base class."""
        coverage = self._loss.coverage(self.min_steps, self._margin, "norm of all weights", progress=True)
        later = len(self._saved) - int(np.searchsorted(self._saved, self._loss.count // 2))
        if later < _SAVED:
            lack = f"weights of {later} saved steps in the later half of the run; at least {_SAVED} are needed"
            coverage.missing, coverage.decided = (*coverage.missing, lack), False
        return coverage
