"""Rules about parameters that take no part in training, by cause."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.schema import PARAMETERS_SCALAR, ROLE_QUANTITY
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import positive
from stepwatch.rules.step import Stats, Step, TensorSet

_NAMED = 12


class Roles:
    """Which parameters do not take part in training, and why, as the hook records it.

    Attributes:
        known: of how many parameters it tells.
        unheld: those that no optimizer holds.
        frozen: those that do not require a gradient.
    """

    def __init__(self) -> None:
        self.known = 0
        self.unheld: set[str] = set()
        self.frozen: set[str] = set()
        self._cut_off: dict[str, int] = {}
        self._not_run: set[str] = set()

    def observe(self, step: Step) -> None:
        """Take note of a step."""
        self.known = max(self.known, int(step.scalars.get(PARAMETERS_SCALAR, 0)))
        for (name, quantity), vector in step.derived.items():
            if quantity == ROLE_QUANTITY:
                self._take(name, step.step, *(bool(flag) for flag in vector))

    def _take(self, name: str, step: int, requires_grad: bool, held: bool, had_gradient: bool, ran: bool) -> None:
        for names, member in ((self.unheld, not held), (self.frozen, not requires_grad), (self._not_run, not ran)):
            (names.add if member else names.discard)(name)
        if requires_grad and held and ran and not had_gradient:
            self._cut_off.setdefault(name, step)
        else:
            self._cut_off.pop(name, None)

    def cut_off(self, before: int) -> list[str]:
        """Parameters that an optimizer holds and that have had no gradient since a step before that, of modules that
        run."""
        return [name for name, since in self._cut_off.items() if since <= before]

    def describe(self) -> str:
        """How many there are that are left out on purpose, as far as one can know: "" where none."""
        counts = {"frozen": len(self.frozen), "of modules that do not run": len(self._not_run - self.frozen)}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


class NoGradient(Rule):
    """Parameters that are meant to be trained never get a gradient, or only zeros.

    Two causes are told apart, each over at least ``saved_steps`` saved steps and ``span`` optimizer steps:

    - cut off: the parameter requires a gradient, an optimizer holds it, its module runs in the forward pass, and
      still its gradient is missing: something between it and the loss leaves the graph (``detach()``, ``.item()``,
      ``torch.no_grad()``, an argmax, a conversion to NumPy);
    - nothing but zeros: the gradient of a weight of two dimensions or more is exactly zero in every entry at each saved
      step, from the first on. Of a sharded weight a rank does not see every entry.

    Frozen parameters, those that no optimizer holds and those of modules that do not run are left alone.

    Args:
        saved_steps: saved steps without a gradient.
        span: optimizer steps that these must span.
    """

    severity = Severity.WARNING

    def __init__(self, *, saved_steps: int = 10, span: int = 50) -> None:
        positive("saved_steps", saved_steps)
        positive("span", span)
        self.saved_steps = saved_steps
        self.span = span
        self._roles = Roles()
        self._rows: dict[TensorSet, NDArray[np.intp]] = {}
        self._zero: set[str] | None = None
        self._steps = SeenSteps(saved_steps)
        self._said: set[str] = set()

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training or not step.saved:
            return
        self._roles.observe(step)
        if step.stats is not None:
            self._look_for_zeros(step.stats)
        if not self._roles.known and self._zero is None:
            return
        self._steps.append(step.step)
        if len(self._steps) < self.saved_steps or step.step - self._steps[0] < self.span:
            return
        cut_off = self._roles.cut_off(min(self._steps[-self.saved_steps], step.step - self.span))
        if cut_off and "cut off" not in self._said:
            self._said.add("cut off")
            yield self._say(
                step,
                cut_off,
                "got no gradient",
                "although held by an optimizer and part of a module that runs: cut off from the loss",
                "look for what leaves the graph between it and the loss: detach(), item(), numpy(), argmax, "
                "torch.no_grad(), a new tensor made from numbers; where that is meant, set requires_grad to False and "
                "leave it out of the optimizer",
            )
        if self._zero and "zeros" not in self._said:
            self._said.add("zeros")
            yield self._say(
                step,
                sorted(self._zero),
                "got a gradient of nothing but zeros",
                "which teaches nothing",
                "look at what comes after it: units that never fire, a mask or a weight of the loss that is zero, "
                "gradients that are too small for half precision",
            )

    def _look_for_zeros(self, stats: Stats) -> None:
        tensors = stats.tensors
        rows = self._rows.get(tensors)
        if rows is None:
            infos = tensors.infos
            whole = [int(i) for i in tensors.rows("gradients") if len(infos[i].shape) >= 2 and not infos[i].shards]
            rows = self._rows[tensors] = np.array(whole, dtype=np.intp)
        if not len(rows) or self._zero == set():
            return
        zero = {tensors.names[i].removeprefix("gradient/") for i in rows[stats.n_zero[rows] == stats.numel[rows]]}
        self._zero = zero if self._zero is None else self._zero & zero

    def _say(self, step: Step, names: list[str], what: str, although: str, suggestion: str) -> Finding:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return self.finding(
            step,
            first_step=self._steps[0],
            tensors=names[:_NAMED],
            value=len(names),
            threshold=0,
            message=f"{names[0]}{others} {what} at {len(self._steps)} saved steps, {although}",
            suggestion=suggestion,
            evidence={"series": [f"gradient/{name}" for name in names[:_NAMED]], "column": "l2", "unit": "norm"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        spanned = self._steps[-1] - self._steps[0] if self._steps else 0
        missing: tuple[str, ...] = ()
        if not self._steps:
            missing = ("neither gradients nor the roles of parameters were recorded",)
        elif len(self._steps) < self.saved_steps or spanned < self.span:
            missing = (
                f"{len(self._steps)} saved steps over {spanned} steps; "
                f"at least {self.saved_steps} over {self.span} are needed",
            )
        tensors = self._roles.known or max((len(rows) for rows in self._rows.values()), default=0)
        return Coverage.of(self._steps, tensors=tensors, missing=missing, closest=self._roles.describe())
