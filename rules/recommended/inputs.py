"""Rules about what a model is given."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from stepwatch.probe.store.schema import FIRST_LAYER_QUANTITY, INPUT_QUANTITY, STAT_COLUMNS
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import LabelCounts, TrainingLoss, positive, spell
from stepwatch.rules.step import StatColumns, Step

_NOTHING = "no inputs of a model were recorded"
_COLUMNS = len(STAT_COLUMNS)
_SAME_SAMPLES = 40


class Inputs(StatColumns):
    """The inputs of one kind of one step: names, statistics, samples and whether all samples are the same."""

    __slots__ = ("identical", "names", "samples")

    def __init__(self, step: Step, quantity: str = INPUT_QUANTITY) -> None:
        found = {name: vector for (name, kind), vector in step.derived.items() if kind == quantity}
        table = np.array([vector[: _COLUMNS + 2] for vector in found.values()]).reshape(-1, _COLUMNS + 2)
        super().__init__(table[:, :_COLUMNS])
        self.names = tuple(found)
        self.samples = table[:, _COLUMNS]
        self.identical = table[:, _COLUMNS + 1] > 0


class _InputRule(Rule):
    """Looks at all inputs of a saved training step."""

    def __init__(self) -> None:
        self._steps = SeenSteps()
        self._names: set[str] = set()

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training or not step.derived:
            return
        inputs = Inputs(step)
        if inputs.names:
            self._steps.append(step.step)
            self._names.update(inputs.names)
            yield from self._judge(step, inputs)

    @abstractmethod
    def _judge(self, step: Step, inputs: Inputs) -> Iterator[Finding]: ...


class NonFiniteInput(_InputRule):
    """The model was given NaN or infinity, and its loss or gradients came out so: the data is the cause.

    Inputs are looked at at saved steps and, where the loss is known on the host (on the CPU), at the very step whose
    loss ceases to be finite. A model that is given NaN for what is missing and deals with it has a finite loss, and is
    no finding; nor is a mask of zeros and minus infinity.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fired = False

    def _judge(self, step: Step, inputs: Inputs) -> Iterator[Finding]:
        mask = (inputs.n_nan == 0) & (inputs.min == 0) & (inputs.max == 0)
        bad = np.where(mask, 0, inputs.n_nan + inputs.n_inf)
        if self._fired or not bad.any() or not _is_broken(step):
            return
        self._fired = True
        worst = int(bad.argmax())
        kind = "NaN" if inputs.n_nan[worst] else "infinite"
        yield self.finding(
            step,
            first_step=step.step,
            tensors=[name for name, count in zip(inputs.names, bad, strict=True) if count],
            value=bad[worst],
            threshold=0,
            message=f"{bad[worst]:.0f} of {inputs.numel[worst]:.0f} entries of the input {inputs.names[worst]} are "
            f"{kind} at step {step.step}, and what the model makes of them is not finite",
            suggestion="look at the samples of this batch: missing values, a division by zero or a logarithm in the "
            "preprocessing, a damaged file; the model and the learning rate are not to blame",
            evidence={"series": list(inputs.names), "quantity": INPUT_QUANTITY, "unit": "entries"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing = () if self._steps else (_NOTHING,)
        return Coverage.of(self._steps, tensors=len(self._names), missing=missing, margin=float(self._fired))


def _is_broken(step: Step) -> bool:
    """Whether a loss or a gradient of the step is not finite."""
    if not all(map(math.isfinite, step.train_losses().values())):
        return True
    if step.stats is None:
        return False
    rows = step.stats.tensors.rows("gradients")
    return bool((step.stats.n_nan[rows] + step.stats.n_inf[rows]).any())


class ConstantInput(_InputRule):
    """All samples of a batch are the same: the model can learn nothing but one answer for all.

    It fires where in each of the last ``patience`` saved training steps, and for every tensor that a model is called
    with, all of at least two samples were identical, and there were 40 samples or more beside the first of each batch:
    two samples of few values may be the same by chance. Steps whose labels are known and all alike do not count.

    Args:
        patience: saved training steps in a row, at least 2.
    """

    severity = Severity.WARNING

    def __init__(self, *, patience: int = 8) -> None:
        if patience < 2:
            raise ValueError(f"patience is {patience}; expected 2 or more")
        super().__init__()
        self.patience = patience
        self._since: dict[str, SeenSteps] = {}
        self._same: dict[str, int] = {}  # samples that were as the first of their batch
        self._longest = 0
        self._fired = False

    def _judge(self, step: Step, inputs: Inputs) -> Iterator[Finding]:
        models: dict[str, list[int]] = {}
        for row, name in enumerate(inputs.names):
            models.setdefault(name.rpartition("_input_")[0], []).append(row)
        for model, rows in models.items():
            same = inputs.identical[rows].all() and inputs.samples[rows].max() > 1
            if not same or _labels_are_alike(step):
                self._since.pop(model, None)
                self._same.pop(model, None)
                continue
            since = self._since.setdefault(model, SeenSteps())
            since.append(step.step)
            self._same[model] = self._same.get(model, 0) + int(inputs.samples[rows].max()) - 1
            enough = self._same[model] >= _SAME_SAMPLES
            self._longest = max(self._longest, len(since) if enough else min(len(since), self.patience - 1))
            if len(since) >= self.patience and enough and not self._fired:
                self._fired = True
                yield self._say(step, [inputs.names[row] for row in rows], since[0], int(inputs.samples[rows].max()))

    def _say(self, step: Step, names: list[str], first: int, samples: int) -> Finding:
        return self.finding(
            step,
            first_step=first,
            tensors=names,
            value=self._longest,
            threshold=self.patience,
            message=f"all {samples} samples of a batch are the same in {names[0]}, at each of the saved steps "
            f"since {first}: the model cannot tell them apart",
            suggestion="look at a batch: an index that is not used, a reader that returns its first record, an "
            "augmentation or a normalisation that leaves nothing over",
            evidence={"series": names, "quantity": INPUT_QUANTITY, "unit": "saved steps in a row"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._steps:
            missing = (_NOTHING,)
        elif len(self._steps) < self.patience:
            missing = (f"{len(self._steps)} saved steps with inputs; at least {self.patience} are needed",)
        margin = self._longest / self.patience
        return Coverage.of(self._steps, tensors=len(self._names), missing=missing, margin=margin)


def _labels_are_alike(step: Step) -> bool:
    counts = [vector for (_, quantity), vector in step.derived.items() if quantity == "class_counts"]
    return any(np.count_nonzero(vector[: len(vector) // 2]) < 2 for vector in counts)


class InputNotNormalized(Rule):
    """What enters the first layer is far from the unit scale that layers are made for, and training suffers from it.

    Initial weights suppose entries with a mean square of about one (Glorot and Bengio 2010, He et al. 2015): raw
    pixels from 0 to 255 make the first outputs, and the loss, a hundred times too large. The scale is the root mean
    square of the entries that enter the first layer with weights, over the first steps. It fires where that is above
    ``scale`` and one of these shows the harm within the first 50 steps: a loss that is not finite, a first loss of more
    than 1.5 times that of guessing (of five times the later one where labels are not known), a sigmoid or tanh layer
    that stands at its ends. A model that begins with a normalisation or an embedding, that scales its inputs itself,
    or whose weights fit them is no finding.

    Args:
        scale: root mean square above which inputs are not normalised.
    """

    severity = Severity.WARNING
    derived = ("class_counts",)
    _LOSSES = 50

    def __init__(self, *, scale: float = 10.0) -> None:
        positive("scale", scale)
        self.scale = scale
        self._loss = TrainingLoss()
        self._labels = LabelCounts()
        self._steps = SeenSteps()
        self._squares: list[float] = []
        self._name = ""
        self._saturated = ""
        self._last: Step | None = None
        self._done = self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if self._done or not step.training:
            return
        value = self._loss.observe(step)
        self._labels.observe(step)
        inputs = Inputs(step, FIRST_LAYER_QUANTITY)
        if inputs.names and math.isfinite(inputs.mean[0]):
            self._name = self._name or inputs.names[0]
            self._squares.append(float(inputs.mean[0] ** 2 + inputs.std[0] ** 2))
            self._steps.append(step.step)
        if not self._saturated and step.stats is not None and step.step < self._LOSSES:
            self._saturated = _at_its_ends(step)
        self._last = step
        broken = value is not None and not math.isfinite(value)
        if self._loss.count >= self._LOSSES or (broken and len(self._squares) > 0):
            self._done = True
            yield from self._judge(step)

    def conclude(self) -> Iterator[Finding]:
        """See the base class."""
        if not self._done and self._last is not None and self._loss.count >= self._LOSSES // 2:
            yield from self._judge(self._last)

    def _judge(self, step: Step) -> Iterator[Finding]:
        scale = self._scale()
        harm = self._harm() if scale is not None and scale > self.scale else ""
        if scale is None or not harm:
            return
        self._fired = True
        yield self.finding(
            step,
            first_step=self._loss.steps[0] if self._loss.steps else self._steps[0],
            tensors=[self._name],
            value=scale,
            threshold=self.scale,
            message=f"what enters the first layer has a root mean square of {spell(scale)}, where weights are made for "
            f"about 1, and {harm}",
            suggestion="bring each feature or channel to mean 0 and standard deviation 1, or begin the model with a "
            "normalisation",
            evidence={"series": [self._name], "quantity": FIRST_LAYER_QUANTITY, "unit": "root mean square"},
        )

    def _scale(self) -> float | None:
        return math.sqrt(float(np.median(self._squares))) if self._squares else None

    def _harm(self) -> str:
        values = np.array(self._loss.values)
        if len(values) and not np.isfinite(values).all():
            return "the loss was not finite within the first steps"
        if self._saturated:
            return f"{self._saturated} stands at its ends from the start"
        if len(values) < self._LOSSES // 2:
            return ""
        first, later = float(np.median(values[:3])), float(np.median(values[20:]))
        guessing = self._labels.loss_of_guessing()
        if guessing is not None and first > 1.5 * guessing:
            return f"the first loss, {spell(first)}, is far above that of guessing, {spell(guessing)}"
        if guessing is None and first > 5 * later > 0:
            return f"the first loss, {spell(first)}, is far above the {spell(later)} of a few steps later"
        return ""

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._squares:
            missing = (
                "the input of a first linear, convolutional or recurrent layer was not recorded (an embedding or a "
                "normalisation comes first, or the model is compiled)",
            )
        elif self._loss.count < self._LOSSES // 2:
            missing = self._loss.missing(self._LOSSES // 2)
        margin = (self._scale() or 0.0) / self.scale
        return Coverage.of(
            self._steps,
            tensors=1 if self._name else 0,
            missing=missing,
            margin=margin if self._fired or margin < 1 else None,  # a scale that does no harm is not near to it
            closest=self._name,
        )


def _at_its_ends(step: Step) -> str:
    """The first sigmoid or tanh output whose mean slope is below a tenth of the largest; "" where there is none."""
    assert step.stats is not None
    tensors = step.stats.tensors
    for row in tensors.rows("activations"):
        kind = tensors.infos[row].module_type
        if kind in ("Sigmoid", "Tanh") and _slope(kind, step.stats.mean[row], step.stats.std[row]) < 0.1:
            return str(tensors.names[row])
    return ""


def _slope(kind: str, mean: float, std: float) -> float:
    """Mean slope as a share of the largest."""
    squares = mean**2 + std**2
    return 4 * (mean - squares) if kind == "Sigmoid" else 1 - squares
