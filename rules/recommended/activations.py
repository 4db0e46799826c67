"""Rules about activations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step


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
        self._steps: list[int] = []
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
        return Coverage(
            decided=not missing,
            steps=len(self._steps),
            first_step=self._steps[0] if self._steps else None,
            last_step=self._steps[-1] if self._steps else None,
            tensors=len(self._layers),
            missing=missing,
            margin=self._margin,
            closest=self._closest,
        )
