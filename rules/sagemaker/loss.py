"""Losses that do not fall, that part, and that have been as low as they get."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable

from stepwatch.rules.finding import Finding
from stepwatch.rules.sagemaker.base import SageMakerRule, above, at_least, percent
from stepwatch.rules.sagemaker.losses import Losses
from stepwatch.rules.sagemaker.selection import Selection
from stepwatch.rules.step import Step

_MODES = ("EVAL", "TRAIN", "GLOBAL")


class LossNotDecreasing(SageMakerRule):
    """The loss has not fallen enough.

    Looked at every ``num_steps``: first at the saved step that is at least ``num_steps`` after the first one, then
    at the next one that is as far after the last look. The loss there is held against that of the newest saved
    step that is at least ``num_steps`` before. With d = 100 (earlier - now) / |earlier|, it fires where
    0 <= d < ``diff_percent`` (it fell too little), or where -d > ``increase_threshold_percent`` (it rose too
    much). The description does not say how the two go together; this is the only reading in which both matter: a
    rise of up to ``increase_threshold_percent`` is let pass. An earlier loss of zero and losses that are not finite
    are passed over. Of several losses each is looked at; one is enough.

    Args:
        collection_names: collections of scalars to look at.
        tensor_regex: regular expressions over names of scalars to look at.
        use_losses_collection: look at the losses too.
        num_steps: global steps between looks, and between what is compared.
        diff_percent: per cent by which it must fall, from 0 to 100.
        increase_threshold_percent: per cent by which it may rise, from 0 to 100.
        mode: TRAIN, EVAL or GLOBAL, which is all steps as they come; None is the first of EVAL, TRAIN and GLOBAL
            that has a loss. The table of SageMaker's documentation gives GLOBAL as the default; its text says
            what happens without a mode, which is None here.
    """

    nothing = "no loss was recorded"

    def __init__(
        self,
        *,
        collection_names: tuple[str, ...] | None = None,
        tensor_regex: tuple[str, ...] | None = None,
        use_losses_collection: bool = True,
        num_steps: int = 10,
        diff_percent: float = 0.1,
        increase_threshold_percent: float = 5.0,
        mode: str | None = None,
    ) -> None:
        super().__init__()
        at_least("num_steps", num_steps, 1)
        percent("diff_percent", diff_percent)
        percent("increase_threshold_percent", increase_threshold_percent)
        if mode is not None and mode.upper() not in _MODES:
            raise ValueError(f"mode is {mode!r}; expected TRAIN, EVAL, GLOBAL or None")
        self.num_steps = num_steps
        self.diff_percent = diff_percent
        self.increase_threshold_percent = increase_threshold_percent
        self.mode = None if mode is None else mode.upper()
        self._selection = Selection(collection_names, tensor_regex)
        self._losses = Losses() if use_losses_collection else None
        self._curves: dict[tuple[str, str], _Curve] = {}

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        scalars = self._selection.scalars(step)
        if self._losses is not None:
            scalars = {**self._losses.evaluation(step), **self._losses.training(step), **scalars}
        mode = "GLOBAL" if self.mode == "GLOBAL" else step.mode
        found = None
        if scalars:
            self.nothing = f"no two losses {self.num_steps} steps apart were recorded"
        for name, value in scalars.items():
            curve = self._curves.setdefault((mode, name), _Curve(self.num_steps))
            pair = curve.add(step.step, value)
            if pair is not None and mode == self._wanted():
                self.looked_at(step, len(scalars))
                found = found or self._judge_pair(step, name, *pair, value)
        return found

    def _wanted(self) -> str:
        if self.mode is not None:
            return self.mode
        return next(mode for mode in _MODES if any(known == mode for known, _ in self._curves))

    def _judge_pair(self, step: Step, name: str, earlier_step: int, earlier: float, now: float) -> Finding | None:
        if not (math.isfinite(earlier) and math.isfinite(now)) or earlier == 0:
            return None
        fall = 100 * (earlier - now) / abs(earlier)
        if fall >= self.diff_percent or (fall < 0 and -fall <= self.increase_threshold_percent):
            return None
        threshold = self.diff_percent if fall >= 0 else -self.increase_threshold_percent
        what = f"fell by {fall:.3g} %" if fall >= 0 else f"rose by {-fall:.3g} %"
        return self.fire(
            step,
            [name],
            [fall],
            threshold=threshold,
            first_step=earlier_step,
            message=f"{name} {what} from step {earlier_step} to {step.step}, from {earlier:.4g} to {now:.4g}",
            suggestion="look at the learning rate and its schedule, at the labels, and at whether the model can fit "
            "the data",
            unit="% fall",
        )


class _Curve:
    """A loss by step, and when to look at it."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._steps: list[int] = []
        self._values: list[float] = []
        self._looked: int | None = None

    def add(self, step: int, value: float) -> tuple[int, float] | None:
        """Take a value; where it is time to look, the step and value to hold it against."""
        if self._looked is None:
            self._looked = step
        self._steps.append(step)
        self._values.append(value)
        if step - self._looked < self._num_steps:
            return None
        self._looked = step
        place = bisect_right(self._steps, step - self._num_steps) - 1
        earlier = self._steps[place], self._values[place]
        del self._steps[:place], self._values[:place]
        return earlier


class Overfit(SageMakerRule):
    """The evaluation loss is higher than the training loss.

    ratio = (mean evaluation loss - mean training loss) / mean training loss. Fires once the ratio was above
    ``ratio_threshold`` at ``patience`` evaluations in a row. The description leaves the window of the means open:
    here an evaluation is what is recorded in EVAL mode between two training steps, and the training losses are
    those since the evaluation before. Needs both modes; a training loss below zero is passed over.

    Args:
        tensor_regex: regular expressions over names of losses; the losses where it is None.
        start_step: global step from which on it looks.
        patience: evaluations in a row.
        ratio_threshold: ratio above which the evaluation loss is too high.
    """

    nothing = "no evaluation with a loss, after training steps with one, was recorded"

    def __init__(
        self,
        *,
        tensor_regex: tuple[str, ...] | None = None,
        start_step: int = 0,
        patience: int = 1,
        ratio_threshold: float = 0.1,
    ) -> None:
        super().__init__()
        at_least("start_step", start_step, 0)
        at_least("patience", patience, 1)
        above("ratio_threshold", ratio_threshold, 0)
        self.start_step = start_step
        self.patience = patience
        self.ratio_threshold = ratio_threshold
        self._losses = _ByMode(tensor_regex)
        self._training: list[float] = []
        self._evaluation: list[float] = []
        self._over: list[int] = []
        self._evaluated: Step | None = None

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        if step.step < self.start_step:
            return None
        training, evaluation = self._losses.of(step)
        found = self._judge_evaluation() if training else None
        self._training += _finite(training.values())
        if evaluation:
            self._evaluation += _finite(evaluation.values())
            self._evaluated = step
        return found

    def conclude(self) -> Iterable[Finding]:
        """The last evaluation is over."""
        found = None if self._fired else self._judge_evaluation()
        return [found] if found is not None else []

    def _judge_evaluation(self) -> Finding | None:
        """The evaluation that has ended, if one has."""
        step = self._evaluated
        if step is None or not self._evaluation:
            return None
        evaluation, training = self._evaluation, self._training
        self._evaluated, self._evaluation = None, []
        if not training:
            return None
        self._training = []
        mean, held_out = sum(training) / len(training), sum(evaluation) / len(evaluation)
        if mean < 0 or (mean == 0 and held_out <= 0):
            return None
        ratio = (held_out - mean) / mean if mean else math.inf
        self.looked_at(step, 2)
        self.came_near(ratio / self.ratio_threshold, f"step {step.step}")
        if not ratio > self.ratio_threshold:
            self._over.clear()
            return None
        self._over.append(step.step)
        if len(self._over) < self.patience:
            return None
        return self.fire(
            step,
            self._losses.names,
            [ratio],
            threshold=self.ratio_threshold,
            first_step=self._over[0],
            message=f"the evaluation loss, {held_out:.4g}, is more than {100 * self.ratio_threshold:.3g} % above the "
            f"training loss, {mean:.4g}, at step {step.step}",
            suggestion="regularise, use dropout or augmentation, get more data, or stop earlier",
            unit="ratio",
        )


class Overtraining(SageMakerRule):
    """Neither the training nor the evaluation loss gets any lower.

    A loss is a new optimum where it is lower than the best so far by ``delta`` or more, in the loss's own unit.
    Fires when the training loss had none at ``patience_train`` saved steps and the evaluation loss none at
    ``patience_validation``. Whether one of the two would do is not said; both are asked for here, and ``delta`` is
    taken as absolute.

    Args:
        patience_train: saved training steps without a new optimum.
        patience_validation: saved evaluation steps without one.
        delta: by how much a new optimum is lower.
    """

    nothing = "training and evaluation losses are needed, and not both were recorded"

    def __init__(self, *, patience_train: int = 5, patience_validation: int = 10, delta: float = 0.01) -> None:
        super().__init__()
        at_least("patience_train", patience_train, 1)
        at_least("patience_validation", patience_validation, 1)
        at_least("delta", delta, 0)
        self.patience_train = patience_train
        self.patience_validation = patience_validation
        self.delta = delta
        self._losses = _ByMode(None)
        self._best = {"training": math.inf, "evaluation": math.inf}
        self._best_step = {"training": 0, "evaluation": 0}
        self._since = {"training": -1, "evaluation": -1}

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        for mode, losses in zip(self._best, self._losses.of(step), strict=True):
            finite = _finite(losses.values())
            if not finite:
                continue
            loss = sum(finite) / len(finite)
            if self._since[mode] < 0 or loss <= self._best[mode] - self.delta:
                self._best[mode], self._best_step[mode], self._since[mode] = loss, step.step, 0
            else:
                self._since[mode] += 1
        train, validation = self._since["training"], self._since["evaluation"]
        if train < 0 or validation < 0:
            return None
        self.looked_at(step, 2)
        self.came_near(min(train / self.patience_train, validation / self.patience_validation), f"step {step.step}")
        if train < self.patience_train or validation < self.patience_validation:
            return None
        return self.fire(
            step,
            self._losses.names,
            [validation],
            threshold=self.patience_validation,
            first_step=max(self._best_step.values()),
            message=f"no new optimum: the training loss was best at step {self._best_step['training']} "
            f"({self._best['training']:.4g}), {train} saved steps ago, the evaluation loss at step "
            f"{self._best_step['evaluation']} ({self._best['evaluation']:.4g}), {validation} ago",
            suggestion="stop early, and keep the weights of the best evaluation",
            unit="saved steps",
        )


class _ByMode:
    """Training and evaluation losses of a step, of the losses or of scalars by name.

    Attributes:
        names: names of those that were seen.
    """

    def __init__(self, tensor_regex: tuple[str, ...] | None) -> None:
        self._losses = Losses()
        self._selection = Selection(patterns=tensor_regex) if tensor_regex else None
        self.names: list[str] = []

    def of(self, step: Step) -> tuple[dict[str, float], dict[str, float]]:
        """Training losses and evaluation losses by name."""
        if self._selection is None:
            training, evaluation = self._losses.training(step), self._losses.evaluation(step)
        else:
            chosen = self._selection.scalars(step)
            training = chosen if step.training else {}
            evaluation = chosen if step.mode == "EVAL" else {}
        self.names += [name for name in (*training, *evaluation) if name not in self.names]
        return training, evaluation


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
