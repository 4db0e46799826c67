"""Gradients that vanish, tensors that explode, weights that begin badly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Finding
from stepwatch.rules.sagemaker.base import SageMakerRule, above, and_others, at_least, worst_first
from stepwatch.rules.sagemaker.losses import Losses
from stepwatch.rules.sagemaker.selection import Chosen, Selection
from stepwatch.rules.step import Step


class VanishingGradient(SageMakerRule):
    """The mean magnitude of a gradient is below a threshold.

    At each saved step on its own: fires where l1 / numel of any tensor of the collection ``gradients`` is less
    than ``threshold``. A gradient that holds a NaN or an infinity is passed over, as its mean is no number. A
    frozen or unused parameter has a gradient of zero and fires: that is what the rule is.

    Args:
        threshold: mean magnitude below which a gradient has vanished.
    """

    nothing = "no gradients were recorded"

    def __init__(self, *, threshold: float = 1e-7) -> None:
        super().__init__()
        above("threshold", threshold, 0)
        self.threshold = threshold
        self._gradients = Selection(("gradients",))

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        gradients = self._gradients.of(step)
        rows = np.flatnonzero(gradients.finite & np.isfinite(gradients.l1))
        if not len(rows):
            return None
        self.looked_at(step, len(rows))
        means = np.full(len(gradients), math.inf)
        means[rows] = gradients.l1[rows] / gradients.numel[rows]
        lowest = int(np.argmin(means))
        self.came_near(self.threshold / means[lowest] if means[lowest] else math.inf, gradients.names[lowest])
        hit = [int(row) for row in np.argsort(means, kind="stable") if means[row] < self.threshold]
        if not hit:
            return None
        names = [gradients.names[row] for row in hit]
        return self.fire(
            step,
            names,
            means[hit],
            threshold=self.threshold,
            message=f"the mean magnitude of {names[0]} is {means[hit[0]]:.3g} at step {step.step}, below "
            f"{self.threshold:g}{and_others(names, len(rows))}",
            suggestion="use ReLU-like activations, normalisation layers, residual connections or an initialisation "
            "that fits the activation (He, Xavier); see first whether the layer is frozen or unused",
            unit="mean magnitude",
        )


class ExplodingTensor(SageMakerRule):
    """A tensor holds NaN or infinity.

    At each saved step on its own, over the tensors of ``collection_names`` or ``tensor_regex``, over all where
    neither is given.

    Args:
        collection_names: collections to look at.
        tensor_regex: regular expressions over names of tensors to look at.
        only_nan: let infinities pass.
    """

    nothing = "no tensor that it looks at was recorded"

    def __init__(
        self,
        *,
        collection_names: tuple[str, ...] | None = None,
        tensor_regex: tuple[str, ...] | None = None,
        only_nan: bool = False,
    ) -> None:
        super().__init__()
        self.only_nan = only_nan
        self._selection = Selection(collection_names, tensor_regex, everything=True)

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        tensors = self._selection.of(step)
        if not len(tensors):
            return None
        self.looked_at(step, len(tensors))
        bad = tensors.n_nan if self.only_nan else tensors.n_nan + tensors.n_inf
        hit = np.flatnonzero(bad > 0)
        if not len(hit):
            return None
        rows = list(worst_first(hit, bad / np.maximum(tensors.numel, 1)))
        names = [tensors.names[row] for row in rows]
        what = "NaN" if tensors.n_nan[rows[0]] else "infinity"
        return self.fire(
            step,
            names,
            bad[rows],
            threshold=0,
            message=f"{names[0]} holds {what} in {int(bad[rows[0]])} of {int(tensors.numel[rows[0]])} entries at "
            f"step {step.step}{and_others(names, len(tensors))}",
            suggestion="lower the learning rate, clip gradients, scale the loss in half precision; look for bad rows "
            "in the input and for a division by, or a logarithm of, zero",
            unit="entries",
            column="n_nan" if what == "NaN" else "n_inf",
        )


class PoorWeightInitialization(SageMakerRule):
    """The first steps show layers of very different variance, gradients without spread, or a loss that stays.

    Over the first ``steps`` saved steps; any of three tests fires it:

    1. of the tensors that ``activation_inputs_regex`` finds, the largest variance is more than ``threshold``
       times the smallest (a variance of zero counts as infinitely small);
    2. the spread of a gradient, its 95th percentile less its 5th, is below ``distribution_range`` for the
       gradient where it is smallest. Percentiles need whole tensors; of a gradient recorded as statistics
       max - min, which is never less, is taken: below ``distribution_range`` it decides, else it is left open.
       Gradients of one entry have no spread and are passed over;
    3. the training loss has not fallen for ``patience`` saved steps in a row.

    SageMaker's description says "variance of weights" in its table and of activation inputs in its text; the
    only regular expression is of the latter, so these are meant here. A test that has no data is left out.

    Args:
        activation_inputs_regex: names of what activations are given. The default is that of SageMaker; in
            PyTorch it matches a module that is called ``...relu``.
        threshold: ratio between the variances.
        distribution_range: least spread of a gradient.
        patience: saved steps for which the loss may stay.
        steps: saved training steps that are looked at.
    """

    whole_tensors = True
    nothing = "neither activation inputs, gradients nor losses were recorded"

    def __init__(
        self,
        *,
        activation_inputs_regex: tuple[str, ...] = (".*relu_input",),
        threshold: float = 10.0,
        distribution_range: float = 0.001,
        patience: int = 5,
        steps: int = 10,
    ) -> None:
        super().__init__()
        above("threshold", threshold, 0)
        above("distribution_range", distribution_range, 0)
        at_least("patience", patience, 1)
        at_least("steps", steps, 1)
        self.threshold = threshold
        self.distribution_range = distribution_range
        self.patience = patience
        self.steps = steps
        self._inputs = Selection(patterns=activation_inputs_regex)
        self._gradients = Selection(("gradients",))
        self._losses = Losses()
        self._last_loss: dict[str, float] = {}
        self._not_falling: dict[str, int] = {}
        self._seen = 0

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        if not step.training or not step.saved or self._seen >= self.steps:
            return None
        self._seen += 1
        inputs, gradients = self._inputs.of(step), self._gradients.of(step)
        losses = self._losses.training(step)
        if not len(inputs):
            self.lacks(f"no tensor that {self._inputs} finds was recorded, so layers were not compared")
        if not len(gradients):
            self.lacks("no gradients were recorded, so their spread was not looked at")
        if len(inputs) or len(gradients) or losses:
            self.looked_at(step, len(inputs) + len(gradients) + len(losses))
        return (
            self._judge_variances(step, inputs)
            or self._judge_spread(step, gradients, self._gradients.values(step))
            or self._judge_losses(step, losses)
        )

    def _judge_variances(self, step: Step, inputs: Chosen) -> Finding | None:
        rows = np.flatnonzero(inputs.finite & np.isfinite(inputs.std))
        if len(rows) < 2:
            return None
        variances = np.square(inputs.std[rows])
        low, high = int(variances.argmin()), int(variances.argmax())
        ratio = float(variances[high] / variances[low]) if variances[low] else math.inf
        names = [inputs.names[rows[low]], inputs.names[rows[high]]]
        self.came_near(ratio / self.threshold, " against ".join(names))
        if not ratio > self.threshold:
            return None
        return self.fire(
            step,
            names,
            [ratio],
            threshold=self.threshold,
            message=f"the variance of {names[1]} is {ratio:.3g} times that of {names[0]} at step {step.step}: "
            "activations do not keep their scale over depth",
            suggestion="initialise so that the variance of activations stays the same over depth: He for ReLU, "
            "Xavier for tanh",
            unit="ratio of variances",
            column="std",
        )

    def _judge_spread(self, step: Step, gradients: Chosen, values: dict[str, NDArray[Any]]) -> Finding | None:
        spreads: dict[str, float] = {}
        open_ones = []
        for row in np.flatnonzero(gradients.finite & (gradients.numel > 1)):
            name = gradients.names[row]
            if name in values:
                low, high = np.percentile(np.asarray(values[name], dtype=np.float64), (5, 95))
                spreads[name] = float(high - low)
            elif gradients.max[row] - gradients.min[row] < self.distribution_range:
                spreads[name] = float(gradients.max[row] - gradients.min[row])
            else:
                open_ones.append(name)
        if open_ones:
            self.lacks(f"percentiles need whole tensors; {open_ones[0]} was recorded as statistics")
        if not spreads:
            return None
        name = min(spreads, key=lambda each: spreads[each])
        self.came_near(self.distribution_range / spreads[name] if spreads[name] else math.inf, name)
        if not spreads[name] < self.distribution_range:
            return None
        return self.fire(
            step,
            [name],
            [spreads[name]],
            threshold=self.distribution_range,
            message=f"{name} has next to no spread at step {step.step}: {spreads[name]:.3g} between its 5th and 95th "
            "percentile",
            suggestion="break the symmetry of the weights, and initialise them larger: He for ReLU, Xavier for tanh",
            unit="spread",
        )

    def _judge_losses(self, step: Step, losses: dict[str, float]) -> Finding | None:
        for name, value in losses.items():
            before = self._last_loss.get(name)
            if before is not None:
                self._not_falling[name] = 0 if value < before else self._not_falling.get(name, 0) + 1
            self._last_loss[name] = value
            count = self._not_falling.get(name, 0)
            self.came_near(count / self.patience, name)
            if count >= self.patience:
                return self.fire(
                    step,
                    [name],
                    [count],
                    threshold=self.patience,
                    message=f"{name} has not fallen for {count} saved steps, among the first {self._seen}",
                    suggestion="look at the initialisation and the learning rate",
                    unit="saved steps",
                )
        return None
