"""Rules about labels: answers that the inputs give away, and answers that no input could give."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.schema import BATCH_QUANTITY
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import History
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import EvalCurve, LabelCounts, TrainingLoss, positive, spell
from stepwatch.rules.step import Step

_LATEST = 20  # losses that are looked at together
_BATCHES = 10  # saved ones that are looked at together
_SAMPLES = 200  # of these, at least
_RIGHT = 0.999
_UNLEARNED = 0.5  # of the loss of guessing
_ALIKE = 5.0  # times as much
_ON_THE_WAY = 0.95  # of the loss of guessing
_WORSE = 1.1  # times the loss of guessing
_NEW = 0.05  # of the labels
_SEEN = 2  # evaluations on the way
_LAST = 3  # evaluations
_NO_LABELS = "100 labels of a cross-entropy loss, of classes that are not nearly all the same"


class SolvedAtOnce(Rule):
    """A classifier knows the answers to data it has never seen, after a few steps: the inputs may give them away.

    Guessing by class frequency costs H, the entropy of the label frequencies. A run is solved at once where the
    training loss began above half of H and the median of the last 20 losses is below ``share`` of H before ``steps``
    updates were made, with 99.9 % of the 200 or more samples of the last 10 saved batches predicted right. It may know
    samples by heart that it has seen before; so it fires where its DataLoader is still in its first pass, or where the
    next evaluation is below five times that loss. By itself that is worth a look and no more: some tasks are easy.
    Where the first pass was solved and an evaluation is then above half of H, the answer is in the training inputs
    alone, and it is a warning.

    Args:
        share: part of the loss of guessing that is next to nothing, in (0, 0.1).
        steps: updates within which nothing real is learned that well, at least 20.
    """

    severity = Severity.INFO
    derived = ("class_counts",)
    calibrated = (("share", "lower"),)

    def __init__(self, *, share: float = 0.01, steps: int = 100) -> None:
        if not 0 < share < 0.1:
            raise ValueError(f"share is {share}; expected a number in (0, 0.1)")
        if steps < _LATEST:
            raise ValueError(f"steps is {steps}; expected {_LATEST} or more")
        self.share = share
        self.steps = steps
        self._loss = TrainingLoss()
        self._evals = EvalCurve()
        self._labels = LabelCounts()
        self._latest: deque[tuple[float, float]] = deque(maxlen=_BATCHES)  # samples, right ones
        self._first_pass = False
        self._solved_at: int | None = None
        self._compared = False
        self._margin = 0.0

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if self._evals.observe(step) and self._solved_at is not None and not self._compared:
            self._compared = True
            yield from self._hold_against_evaluation(step)
        value = self._loss.observe(step)
        if value is None or self._solved_at is not None or self._loss.count > self.steps:
            return
        self._labels.observe(step)
        for (_, quantity), vector in step.derived.items():
            if quantity == "class_counts":
                labels, right = vector.reshape(2, -1).sum(axis=1)
                self._latest.append((labels, right))
            elif quantity == BATCH_QUANTITY:
                self._first_pass = vector[2] > 1 and vector[1] <= vector[2]
        if self._is_solved():
            self._solved_at = step.step
            if self._first_pass:
                yield self._say(step, Severity.INFO, "of samples seen for the first time")

    def _is_solved(self) -> bool:
        guessing = self._labels.loss_of_guessing()
        values = self._loss.values
        if guessing is None or self._loss.several or len(values) < _LATEST:
            return False
        level = float(np.median(values[-_LATEST:]))
        if not (np.median(values[:3]) >= _UNLEARNED * guessing and level > 0):
            return False
        self._margin = max(self._margin, min(self.share * guessing / level, 1.0))
        samples, right = np.sum(self._latest, axis=0)
        return bool(level < self.share * guessing and samples >= _SAMPLES and right >= _RIGHT * samples)

    def _hold_against_evaluation(self, step: Step) -> Iterator[Finding]:
        guessing = self._labels.loss_of_guessing()
        level = self._evals.values[-1]
        if guessing is None:
            return
        if not self._first_pass and level < _ALIKE * self.share * guessing:
            yield self._say(step, Severity.INFO, f"of training samples, with an evaluation loss of {spell(level)}")
        elif self._first_pass and level > _UNLEARNED * guessing:
            yield self._say(
                step,
                Severity.WARNING,
                f"of new training samples, but the evaluation loss is {spell(level)}: the training inputs give the "
                "answers away, those of the evaluation do not",
            )

    def _say(self, step: Step, severity: Severity, of_what: str) -> Finding:
        guessing, solved = self._labels.loss_of_guessing() or 0.0, self._solved_at or 0
        at = self._loss.steps.index(solved)
        level = float(np.median(self._loss.values[at + 1 - _LATEST : at + 1]))
        samples, right = np.sum(self._latest, axis=0)
        hint = "" if severity is Severity.WARNING else ": the task is very easy, or the inputs give the answer away"
        return self.finding(
            step,
            first_step=self._loss.steps[at + 1 - _LATEST],
            tensors=dict.fromkeys(name for name in (self._loss.name, self._evals.name) if name),
            value=level,
            threshold=self.share * guessing,
            message=f"the training loss was {spell(level)} after {at + 1} steps, where guessing by class frequency "
            f"costs {spell(guessing)}, and {100 * right / samples:.4g} % {of_what}{hint}",
            suggestion="look for the label among the inputs (a column made from it, an order of rows, a file name, "
            "targets that are not shifted, a mask that lets a position see itself); try a linear model on each input "
            "alone",
            evidence={"series": [self._loss.name], "unit": "loss", "guessing": guessing},
            severity=severity,
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        coverage = self._loss.coverage(_LATEST, self._margin, self._loss.name)
        missing = list(coverage.missing)
        if self._labels.loss_of_guessing() is None:
            missing.append(_NO_LABELS)
        coverage.missing, coverage.decided = tuple(missing), not missing
        return coverage


class LabelsLookShuffled(Rule):
    """The training data is learned by heart, and evaluation has never been better than guessing.

    Guessing by class frequency costs H, the entropy of the label frequencies. It fires where no evaluation was below
    ``guess`` times H, at two of them or more the training loss was on its way (between H / 2 and 0.95 H), and at the
    latest it was below ``learned`` times H with an evaluation loss above 1.1 H and the highest of the last three: what
    is learned holds for no sample but its own. Overfitting looks alike at its end, but on its way its evaluation loss
    is better than guessing. Where classes are added to the training as it goes on, nothing is judged.

    Args:
        learned: part of the loss of guessing below which training has learned, in (0, 1).
        guess: part of the loss of guessing below which an evaluation is better than it, in (0, 1].
    """

    severity = Severity.WARNING
    derived = ("class_counts",)
    calibrated = (("learned", "lower"),)

    def __init__(self, *, learned: float = 0.7, guess: float = 0.97) -> None:
        for name, value in {"learned": learned, "guess": guess}.items():
            positive(name, value)
            if value > 1:
                raise ValueError(f"{name} is {value}; expected a number in (0, 1]")
        self.learned = learned
        self.guess = guess
        self._loss = TrainingLoss()
        self._evals = EvalCurve()
        self._labels = LabelCounts()
        self._before: NDArray[np.float64] | None = None  # labels before the first evaluation
        self._levels: History[float] = History("d", 256)  # training losses between evaluations
        self._since = 0
        self._margin = 0.0
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        self._labels.observe(step)
        if self._evals.observe(step):
            self._before = self._labels.counts() if self._before is None else self._before
            between = self._loss.values[self._since :]
            self._since = self._loss.count
            self._levels.append(float(np.median(between)) if between else float("nan"))
            if not self._fired:
                yield from self._judge(step)
        self._loss.observe(step)

    def _judge(self, step: Step) -> Iterator[Finding]:
        guessing = self._labels.loss_of_guessing()
        values = self._evals.values
        if guessing is None or self._loss.several or len(values) <= _LAST or not min(values) >= self.guess * guessing:
            return
        if self._new_classes():
            return
        on_the_way = [_UNLEARNED * guessing < level < _ON_THE_WAY * guessing for level in self._levels]
        training, now = self._levels[-1], values[-1]
        if sum(on_the_way) < _SEEN or not training > 0:
            return
        self._margin = max(self._margin, min(self.learned * guessing / training, 1.0))
        if training >= self.learned * guessing or now < _WORSE * guessing or now < max(values[-_LAST:]):
            return
        self._fired = True
        yield self.finding(
            step,
            first_step=self._evals.steps[on_the_way.index(True)],
            tensors=dict.fromkeys((self._evals.name, self._loss.name)),
            value=now,
            threshold=guessing,
            message=f"the training loss has fallen to {spell(training)} and none of {len(values)} evaluations "
            f"was better than guessing by class frequency ({spell(guessing)}; now {spell(now)}): samples are "
            "learned by heart, and nothing in them says what their labels are",
            suggestion="check that labels and inputs belong together in both sets (shuffled apart, sorted differently, "
            "off by one, another numbering of the classes), and that evaluation prepares its inputs as training does",
            evidence={"series": [self._loss.name, self._evals.name], "unit": "loss", "guessing": guessing},
        )

    def _new_classes(self) -> bool:
        """Whether classes came up later that an evaluation may have asked for all along."""
        now, before = self._labels.counts(), self._before
        if before is None or now.shape != before.shape:
            return True
        later = now - before
        return bool(later[before == 0].sum() > _NEW * later.sum())

    def coverage(self) -> Coverage:
        """See the base class."""
        missing = list(self._loss.missing(1))
        if self._labels.loss_of_guessing() is None:
            missing.append(_NO_LABELS)
        if len(self._evals.values) <= _LAST:
            missing.append(f"{len(self._evals.values)} evaluations with a loss; at least {_LAST + 1} are needed")
        elif self._new_classes():
            missing.append("the same classes in training from its start: new ones came up later")
        return Coverage(
            decided=not missing,
            steps=len(self._evals.values),
            first_step=self._evals.steps[0] if self._evals.steps else None,
            last_step=self._evals.steps[-1] if self._evals.steps else None,
            tensors=0 if missing else 2,
            missing=tuple(missing),
            margin=self._margin,
            closest=self._evals.name,
        )
