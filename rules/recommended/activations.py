"""Rules about activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Stats, Step, TensorSet


class DeadRelu(Rule):
    """Units of a ReLU layer that no input switches on any more; they get no gradient and stay that way.

    A unit (a channel of a convolution) that is silent for most inputs is sparse, which is how ReLU networks
    work; it counts as dead only when it fired for no sample of any of the last 10 saved training batches (for
    an error) or of the last 50 (for a warning). A layer in which every unit is dead passes no gradient to
    anything before it: an error. A layer that has lost ``share`` of its units is a warning.

    Args:
        share: part of a layer's units that must be dead for a warning, in (0, 1].
    """

    derived = ("unit_activity",)
    calibrated = (("share", "higher"),)

    def __init__(self, *, share: float = 0.9) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; expected a number in (0, 1]")
        self.share = share
        self._layers: set[str] = set()
        self._said: dict[str, Severity] = {}
        self._steps = SeenSteps()
        self._margin = 0.0
        self._closest = ""
        self._since: dict[str, int] = {}

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        activity = {name: v for (name, quantity), v in step.derived.items() if quantity == "unit_activity"}
        if not step.training or not activity:
            return
        self._steps.append(step.step)
        found: dict[Severity, list[tuple[str, float, int]]] = {Severity.ERROR: [], Severity.WARNING: []}
        names = list(activity)
        self._layers.update(names)
        units, silent, silent_10, silent_50 = np.array([vector[:4] for vector in activity.values()]).T
        quiet = np.flatnonzero(silent >= self.share * units)
        if self._since:
            still = {names[at] for at in quiet}
            self._since = {name: at for name, at in self._since.items() if name in still or name not in activity}
        for at in quiet:
            name = names[at]
            first = self._since.setdefault(name, step.step)
            whole = silent_10[at] == units[at]
            lost = float(silent_50[at] / units[at])
            dead = max(1.0 if whole else 0.0, lost)
            if dead / self.share > self._margin:
                self._margin, self._closest = dead / self.share, f"{name} at step {step.step}"
            if whole:
                self._collect(found, Severity.ERROR, name, 1.0, first)
            elif silent_50[at] >= self.share * units[at]:
                self._collect(found, Severity.WARNING, name, lost, first)
        for severity, layers in found.items():
            if layers:
                yield self._say(step, severity, layers)

    def _collect(
        self,
        found: dict[Severity, list[tuple[str, float, int]]],
        severity: Severity,
        name: str,
        dead: float,
        first: int,
    ) -> None:
        if self._said.get(name) not in (severity, Severity.ERROR):
            self._said[name] = severity
            found[severity].append((name, dead, first))

    def _say(self, step: Step, severity: Severity, layers: list[tuple[str, float, int]]) -> Finding:
        layers.sort(key=lambda layer: -layer[1])
        name, dead, first = layers[0]
        window = 10 if severity is Severity.ERROR else 50
        others = f" (and {len(layers) - 1} other layers)" if len(layers) > 1 else ""
        blocks = "; nothing before it gets a gradient through it" if severity is Severity.ERROR else ""
        return self.finding(
            step,
            first_step=min(layer[2] for layer in layers),
            tensors=[layer[0] for layer in layers[:12]],
            value=dead,
            threshold=1.0 if severity is Severity.ERROR else self.share,
            message=f"{100 * dead:.0f} % of the units of {name}{others} fired for no sample in each of the "
            f"last {window} saved batches, since step {first}{blocks}",
            suggestion="lower the learning rate, check the initial biases and the scale of the inputs, or use "
            "LeakyReLU, GELU or normalisation before the activation",
            evidence={"series": [layer[0] for layer in layers[:12]], "column": "zero_share", "unit": "share"},
            severity=severity,
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._layers:
            missing = ("no output of a ReLU module was recorded (functional calls cannot be seen)",)
        elif len(self._steps) < 10:
            missing = (f"{len(self._steps)} saved steps; at least 10 are needed",)
        return Coverage.of(
            self._steps,
            tensors=len(self._layers),
            missing=missing,
            margin=self._margin,
            closest=self._closest,
        )


class SaturatedActivation(Rule):
    """Units of a hidden sigmoid or tanh layer stand at their ends, where the slope is zero and no gradient passes.

    The mean slope over a layer's outputs y follows from their statistics: 1 - mean(y^2) for a tanh, and
    mean(y) - mean(y^2) for a sigmoid, whose largest is 1/4. A layer is saturated where it stays below ``slope`` of
    the largest one in every one of the last ``patience`` saved training steps (Glorot and Bengio 2010). An activation
    that no weight comes after is trained to saturate, and does not count.

    Args:
        slope: share of the largest slope, in (0, 1).
        patience: saved training steps in a row, at least 2.
    """

    severity = Severity.WARNING
    calibrated = (("slope", "lower"),)

    def __init__(self, *, slope: float = 0.03, patience: int = 20) -> None:
        if not 0 < slope < 1:
            raise ValueError(f"slope is {slope}; expected a number in (0, 1)")
        if patience < 2:
            raise ValueError(f"patience is {patience}; expected 2 or more")
        self.slope = slope
        self.patience = patience
        self._tensors: TensorSet | None = None
        self._rows: NDArray[np.intp] = np.empty(0, np.intp)
        self._sigmoid: NDArray[np.bool_] = np.empty(0, np.bool_)
        self._since: dict[str, SeenSteps] = {}
        self._layers: set[str] = set()
        self._said: set[str] = set()
        self._steps = SeenSteps()
        self._margin = 0.0
        self._closest = ""

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if step.stats is None or not step.training:
            return
        if step.stats.tensors is not self._tensors:
            self._choose(step.stats.tensors)
        if not len(self._rows):
            return
        self._steps.append(step.step)
        names = [step.stats.tensors.names[row] for row in self._rows]
        self._layers.update(names)
        slopes = self._slopes(step.stats)
        found = []
        for name, slope in zip(names, slopes.tolist(), strict=True):
            if not slope < self.slope:  # NaN is no saturation
                self._since.pop(name, None)
                continue
            since = self._since.setdefault(name, SeenSteps())
            since.append(step.step)
            margin = len(since) / self.patience
            if margin > self._margin:
                self._margin, self._closest = margin, f"{name} at step {step.step}"
            if len(since) >= self.patience and name not in self._said:
                found.append((name, slope))
        if found:
            yield self._say(step, found)

    def _choose(self, tensors: TensorSet) -> None:
        self._tensors = tensors
        self._rows = np.array(_hidden(tensors), dtype=np.intp)
        self._sigmoid = np.array([tensors.infos[row].module_type == "Sigmoid" for row in self._rows], dtype=np.bool_)

    def _slopes(self, stats: Stats) -> NDArray[np.float64]:
        """Mean slopes as shares of the largest."""
        mean, std = stats.mean[self._rows], stats.std[self._rows]
        squares = mean**2 + std**2
        return np.where(self._sigmoid, 4 * (mean - squares), 1 - squares)

    def _say(self, step: Step, found: list[tuple[str, float]]) -> Finding:
        found.sort(key=lambda layer: layer[1])
        names = [name for name, _ in found]
        self._said.update(names)
        others = f" (and {len(names) - 1} other layers)" if len(names) > 1 else ""
        return self.finding(
            step,
            first_step=min(self._since[name][0] for name in names),
            tensors=names[:12],
            value=found[0][1],
            threshold=self.slope,
            message=f"{names[0]}{others} is saturated: the mean slope of its units has been below "
            f"{100 * self.slope:.3g} % of the largest for {self.patience} saved steps; hardly any gradient passes it",
            suggestion="begin with smaller weights (Xavier), normalise the inputs or add a normalisation before the "
            "activation, lower the learning rate, or use ReLU or GELU",
            evidence={"series": names[:12], "column": "std", "unit": "standard deviation of the outputs"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._layers:
            missing = ("no output of a hidden sigmoid or tanh module was recorded (functional calls cannot be seen)",)
        elif len(self._steps) < self.patience:
            missing = (f"{len(self._steps)} saved steps; at least {self.patience} are needed",)
        return Coverage.of(
            self._steps,
            tensors=len(self._layers),
            missing=missing,
            margin=self._margin,
            closest=self._closest,
        )


def _hidden(tensors: TensorSet) -> Sequence[int]:
    """Outputs of sigmoid and tanh modules that a weight comes after."""
    saturating = [
        row
        for row in tensors.rows("activations")
        if tensors.infos[row].module_type in ("Sigmoid", "Tanh") and "output" in tensors.names[row]
    ]
    weights = [tensors.infos[row].order for row in tensors.rows("weights")]
    last_weight = max(weights, default=-1)
    models = {tensors.names[row].split("_")[0] for row in tensors.rows("weights")}
    if len(models) != 1:  # which of several an activation belongs to is not known
        return []
    return [row for row in saturating if tensors.infos[row].order < last_weight]
