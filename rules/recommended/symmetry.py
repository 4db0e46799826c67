"""A rule about units of a layer that training cannot tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stepwatch.probe.store.schema import EQUAL_UNITS_QUANTITY
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import positive
from stepwatch.rules.step import Step

_NAMED = 12


@dataclass
class _Layer:
    """Since which step units of a layer have been equal, how often that was seen, and the norm of its weights then."""

    first_step: int
    norm: float
    looks: int = 0


class SymmetricUnits(Rule):
    """Units of a layer are equal and stay equal although their weights change: they count as one.

    Units with the same incoming weights and bias compute the same, and where what they feed treats them alike they get
    the same gradient for ever. Equal beginnings by themselves are nothing, since different outgoing weights part them
    with the first update. The hook compares up to 256 units of up to 32 layers at the first, second, fourth, eighth ...
    saved step. It fires where ``share`` of the units of a layer had an equal one in ``looks`` looks in a row over
    ``span`` steps or more, in which the weights have changed. Units whose weights are all zero are left out.

    Args:
        share: share of the units of a layer that are equal to another, in (0, 1].
        looks: looks in a row at which they were, at least 2.
        span: steps between the first of them and the last.
    """

    severity = Severity.WARNING
    calibrated = (("share", "higher"),)

    def __init__(self, *, share: float = 0.25, looks: int = 4, span: int = 30) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; expected a number in (0, 1]")
        if looks < 2:
            raise ValueError(f"looks is {looks}; expected 2 or more")
        positive("span", span)
        self.share = share
        self.looks = looks
        self.span = span
        self._layers: dict[str, _Layer] = {}
        self._names: set[str] = set()
        self._steps = SeenSteps()
        self._margin = 0.0
        self._closest = ""
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        seen = {name: vector for (name, quantity), vector in step.derived.items() if quantity == EQUAL_UNITS_QUANTITY}
        if not seen or not step.training or self._fired:
            return
        self._steps.append(step.step)
        self._names |= seen.keys()
        stuck: dict[str, tuple[int, int]] = {}
        for name, (units, equal, norm) in seen.items():
            if equal < self.share * units:
                self._layers.pop(name, None)
                continue
            layer = self._layers.setdefault(name, _Layer(step.step, norm))
            layer.looks += 1
            moved = norm != layer.norm
            if moved and layer.looks / self.looks > self._margin:
                self._margin, self._closest = min(layer.looks / self.looks, 1.0), f"{name} at step {step.step}"
            if moved and layer.looks >= self.looks and step.step - layer.first_step >= self.span:
                stuck[name] = int(equal), int(units)
        if stuck:
            self._fired = True
            yield self._say(step, stuck)

    def _say(self, step: Step, stuck: dict[str, tuple[int, int]]) -> Finding:
        name, (equal, units) = max(stuck.items(), key=lambda item: item[1][0] / item[1][1])
        others = f", and so in {len(stuck) - 1} other layers" if len(stuck) > 1 else ""
        first = min(self._layers[each].first_step for each in stuck)
        return self.finding(
            step,
            first_step=first,
            tensors=[name, *(each for each in stuck if each != name)][:_NAMED],
            value=equal / units,
            threshold=self.share,
            message=f"{equal} of {units} units of {name} are equal to another one{others}, and have stayed so for "
            f"{step.step - first} steps in which their weights changed: they compute the same and learn the same",
            suggestion="draw the initial weights at random (the layers' own initialisation does); add noise to units "
            "that were copied to make a layer wider",
            evidence={"series": [name], "quantity": EQUAL_UNITS_QUANTITY, "unit": "units"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._steps:
            missing = ("units were not compared: they are at saved steps, of weights that are whole on this rank",)
        elif len(self._steps) < self.looks or self._steps[-1] - self._steps[0] < self.span:
            missing = (
                f"units were compared {len(self._steps)} times over {self._steps[-1] - self._steps[0]} steps; at least "
                f"{self.looks} times over {self.span} are needed",
            )
        return Coverage.of(
            self._steps, tensors=len(self._names), missing=missing, margin=self._margin, closest=self._closest
        )
