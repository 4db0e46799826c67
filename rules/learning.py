"""The learning curves of a run, diagnosed in words: what training and evaluation losses say together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.series import (
    EvalCurve,
    LabelCounts,
    TrainingLoss,
    block_medians,
    noise_of,
    spell,
    trend_z,
)
from stepwatch.rules.step import Step, is_loss

MIN_STEPS = 40
_BLOCKS = 20
_MOVED = 0.02  # of its level, that a loss must have moved to be said to
_ALIKE = 0.1  # of the loss of guessing
_SURE, _LIKELY = 3.3, 2.0  # standard scores: once in 1,000 by chance, once in 20
_MIN_EVALUATIONS = 4
_TRAINING = ("TRAIN", "GLOBAL")


@dataclass(frozen=True)
class Learning:
    """What the curves say.

    Attributes:
        training: the training loss in a sentence, "" where there is none to tell of.
        evaluation: the evaluation loss beside it, "" where there are too few evaluations.
        diagnosis: both together, in a word or two: "learning", "converged", "underfitting", "overfitting", "diverging"
            or "unclear".
        confidence: "sure", "likely" or "unclear", by the standard score of the trend that decided.
    """

    training: str
    evaluation: str
    diagnosis: str
    confidence: str

    def sentence(self) -> str:
        """All of it; "" where nothing can be said."""
        said = "; ".join(part for part in (self.training, self.evaluation) if part)
        return f"{self.diagnosis} ({self.confidence}): {said}" if said else ""


def learning_of(trace: Trace) -> Learning:
    """Diagnose the curves of the first rank of a run, from its scalars and the labels that were counted.

    The course of a loss is that of the later half of its steps, in 20 stretches: a fall or rise of more than 2 % with a
    Mann-Kendall score beyond 2. Overfitting is an evaluation loss that has risen by a twentieth and three times its
    noise above its lowest while the training loss did not rise; underfitting a loss that is flat, within a tenth of
    that of guessing by class frequency.
    """
    loss, evaluations, labels = _curves(trace)
    values = np.array(loss.values)
    if len(values) < MIN_STEPS or loss.several or loss.signed or loss.below_zero:
        return Learning("", "", "unclear", "unclear")
    if not np.isfinite(values[-5:]).all():
        return Learning(f"the training loss is {values[-1]} since about step {_lost(loss)}", "", "diverging", "sure")
    values = values[np.isfinite(values)]
    start, level = float(np.median(values[:5])), float(np.median(values[-max(len(values) // 10, 5) :]))
    course, z = _course(values)
    guessing = labels.loss_of_guessing()
    beside = "" if guessing is None else f" (guessing by class frequency costs {spell(guessing)})"
    training = f"the training loss went from {spell(start)} to {spell(level)}{beside} and {course} over the later half"
    evaluation, turned = _beside(evaluations, level)
    lost_at_once = guessing is not None and level > 2 * max(guessing, float(values[0]))
    if course == "rises" or level > 2 * start > 0:
        diagnosis = "diverging"
    elif lost_at_once and course == "is flat":
        diagnosis, z = "diverging", _SURE
    elif turned:
        diagnosis, z = "overfitting", turned
    elif course == "falls":
        diagnosis = "learning"
    elif guessing is not None and level > (1 - _ALIKE) * guessing:
        diagnosis, z = "underfitting", _SURE
    elif start - level > _ALIKE * abs(start):
        diagnosis, z = "converged", _LIKELY
    else:
        diagnosis, z = "unclear", 0.0
    return Learning(training, evaluation, diagnosis, _confidence(z))


def _curves(trace: Trace) -> tuple[TrainingLoss, EvalCurve, LabelCounts]:
    loss, evaluations, labels = TrainingLoss(), EvalCurve(), LabelCounts()
    ranks = trace.ranks[:1]
    columns = ["step", "mode", "mode_step", "name", "value"]
    rows = trace.table("scalars", columns=columns, ranks=ranks)
    losses = [name for name in pc.unique(rows["name"]).to_pylist() if is_loss(name)]
    rows = rows.filter(pc.is_in(rows["name"], pa.array(losses, pa.string())))
    steps: dict[tuple[int, str, int], dict[str, float]] = {}
    for step, mode, mode_step, name, value in zip(*(rows[each].to_pylist() for each in columns), strict=True):
        steps.setdefault((step, mode, mode_step), {})[name] = value
    derived = trace.table("derived", columns=["step", "mode", "name", "quantity", "value"], ranks=ranks)
    for row in derived.filter(pc.equal(derived["quantity"], "class_counts")).to_pylist():
        vector = {(row["name"], row["quantity"]): np.array(row["value"], np.float64)}
        labels.observe(Step(0, row["step"], row["mode"], 0, 0, derived=vector))
    order = sorted(steps, key=lambda key: (key[0], key[1] in _TRAINING, key[2]))  # a step follows its evaluation
    for step, mode, mode_step in order:
        each = Step(0, step, mode, mode_step, 0, scalars=steps[step, mode, mode_step])
        evaluations.observe(each)
        loss.observe(each)
    evaluations.observe(Step(0, order[-1][0] + 1 if order else 0, "TRAIN", 0, 0))
    return loss, evaluations, labels


def _course(values: NDArray[np.float64]) -> tuple[str, float]:
    """How a loss moves over the later half of its steps, and the standard score of that."""
    medians = block_medians(values[len(values) // 2 :], _BLOCKS)
    z = trend_z(medians)
    moved = float(medians[-3:].mean() - medians[:3].mean()) / max(abs(float(medians[0])), 1e-12)
    if abs(z) < _LIKELY or abs(moved) < _MOVED or (z > 0) != (moved > 0):
        return "is flat", z
    return ("rises" if z > 0 else "falls"), z


def _beside(evaluations: EvalCurve, training: float) -> tuple[str, float]:
    """The evaluation loss in a sentence, and the score of its rise since its lowest where it overfits, else 0."""
    values = np.array(evaluations.values)
    if len(values) < _MIN_EVALUATIONS or not np.isfinite(values).all():
        return "", 0.0
    best, last = int(values.argmin()), float(np.median(values[-3:]))
    lowest = float(values[best])
    gap = f"{spell(last / training)} times the training loss" if training > 0 and last > 0 else "beside it"
    risen = last - lowest > max(0.05 * abs(lowest), 3 * noise_of(values)) and best < len(values) - 3
    if risen:
        at = evaluations.steps[best]
        return (
            f"the evaluation loss was lowest at step {at} ({spell(lowest)}) and is {spell(last)} now, {gap}",
            max(trend_z(values[best:]), _LIKELY),
        )
    return f"the evaluation loss is {spell(last)}, {gap}, and near its lowest", 0.0


def _lost(loss: TrainingLoss) -> int:
    """The step from which on the loss is not finite."""
    finite = [step for step, value in zip(loss.steps, loss.values, strict=True) if math.isfinite(value)]
    return finite[-1] + 1 if finite else loss.steps[0]


def _confidence(z: float) -> str:
    return "sure" if abs(z) >= _SURE else "likely" if abs(z) >= _LIKELY else "unclear"
