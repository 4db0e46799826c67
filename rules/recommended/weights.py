"""Rules about weights: how they begin, and whether they move."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.recommended.parameters import Roles
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import positive, spell
from stepwatch.rules.step import Stats, Step, TensorSet

_FIRST_STEPS = 50
_UNTOUCHED_STEPS = 3
_NAMED = 12


class PoorWeightInitialization(Rule):
    """The weights begin in a way from which training cannot go well.

    Looked at in the first three saved training steps, of the first 50 steps:

    - a weight matrix all of whose entries are equal and not zero: its units compute the same and stay the
      same (symmetry is never broken); or all weight matrices zero (single ones are a common, sound choice);
    - in the first of them, while updates have hardly touched the weights, the spread of the activations
      changes over depth by more than ``blow_up`` times between the first and the last activation layer: the
      scale of the weights does not fit the width of the layers (Glorot and Bengio 2010; He et al. 2015);
    - the first loss of a classifier is more than ``loss_factor`` times that of guessing among its classes,
      ln(C): the outputs begin far too large.

    Args:
        blow_up: factor between the first and the last activation layer, either way.
        loss_factor: multiple of ln(C).
    """

    severity = Severity.WARNING
    derived = ("class_counts",)
    calibrated = (("blow_up", "higher"), ("loss_factor", "higher"))

    def __init__(self, *, blow_up: float = 1e4, loss_factor: float = 5.0) -> None:
        positive("blow_up", blow_up)
        positive("loss_factor", loss_factor)
        self.blow_up = blow_up
        self.loss_factor = loss_factor
        self._looked: list[int] = []
        self._late = False
        self._tensors = 0
        self._margin = 0.0
        self._closest = ""
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if step.stats is None or not step.training or self._fired or len(self._looked) >= 3:
            return
        if step.step >= _FIRST_STEPS:
            self._late = not self._looked
            return
        self._looked.append(step.step)
        self._tensors = max(self._tensors, len(step.stats.tensors))
        untouched = len(self._looked) == 1 and step.step < _UNTOUCHED_STEPS
        for finding in (
            self._equal_weights(step, step.stats),
            self._spread_over_depth(step, step.stats) if untouched else None,
            self._first_loss(step),
        ):
            if finding is not None and not self._fired:
                self._fired = True
                yield finding

    def _equal_weights(self, step: Step, stats: Stats) -> Finding | None:
        tensors = stats.tensors
        matrices = [i for i in tensors.rows("weights") if len(tensors.infos[i].shape) >= 2]
        matrices = [i for i in matrices if stats.numel[i] >= 16]
        if not matrices:
            return None
        equal = [i for i in matrices if stats.min[i] == stats.max[i] and stats.max[i] != 0]
        zero = [i for i in matrices if stats.abs_max[i] == 0]
        if not equal and len(zero) < len(matrices):
            return None
        names = [tensors.names[i] for i in equal or zero]
        value = float(stats.max[(equal or zero)[0]])
        return self._say(
            step,
            names,
            value=0.0,
            threshold=0.0,
            message=f"all entries of {names[0]} begin at {spell(value)}"
            + (f", and so in {len(names) - 1} other weights" if len(names) > 1 else "")
            + ": its units compute the same, get the same gradient and can never differ",
            column="std",
        )

    def _spread_over_depth(self, step: Step, stats: Stats) -> Finding | None:
        tensors = stats.tensors
        rows = sorted(tensors.rows("activations"), key=lambda i: tensors.infos[i].order)
        sound = [i for i in rows if np.isfinite(stats.std[i])]
        if len(sound) < 3 or stats.std[sound[0]] == 0:
            return None
        ratio = float(stats.std[sound[-1]] / stats.std[sound[0]])
        change = max(ratio, 1 / ratio) if ratio > 0 else float("inf")
        if change / self.blow_up > self._margin:
            self._margin, self._closest = change / self.blow_up, f"activations at step {step.step}"
        if change <= self.blow_up:
            return None
        names = [tensors.names[i] for i in sound]
        way = "grows" if ratio > 1 else "shrinks"
        return self._say(
            step,
            names,
            value=change,
            threshold=self.blow_up,
            message=f"the spread of the activations {way} from {spell(stats.std[sound[0]])} in {names[0]} to "
            f"{spell(stats.std[sound[-1]])} in {names[-1]}: the scale of the initial weights does not fit",
            column="std",
        )

    def _first_loss(self, step: Step) -> Finding | None:
        counts = [len(v) // 2 for (_, quantity), v in step.derived.items() if quantity == "class_counts"]
        losses = {n: v for n, v in step.train_losses().items() if n.startswith(("CrossEntropy", "NLL"))}
        if step.step > 0 or not counts or counts[0] < 2 or not losses:
            return None
        name, loss = next(iter(losses.items()))
        limit = self.loss_factor * float(np.log(counts[0]))
        if np.isfinite(loss) and loss / limit > self._margin:
            self._margin, self._closest = loss / limit, f"{name} at step {step.step}"
        if not loss > limit:
            return None
        return self._say(
            step,
            [name],
            value=loss,
            threshold=limit,
            message=f"the first loss is {spell(loss)}; guessing among {counts[0]} classes gives "
            f"{spell(np.log(counts[0]))}: the outputs begin far too large",
            column=None,
        )

    def _say(
        self,
        step: Step,
        names: list[str],
        *,
        value: float,
        threshold: float,
        message: str,
        column: str | None,
    ) -> Finding:
        return self.finding(
            step,
            first_step=step.step,
            tensors=names[:_NAMED],
            value=value,
            threshold=threshold,
            message=message,
            suggestion="use the layers' default initialisation, or one that fits the activation (He for ReLU, "
            "Xavier for tanh and sigmoid); bring inputs to zero mean and unit variance",
            evidence={"series": names[:_NAMED], "column": column, "unit": column or "loss"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if self._late:
            missing = (f"nothing was saved in the first {_FIRST_STEPS} steps",)
        elif not self._looked:
            missing = ("no tensors of the first steps were recorded",)
        return Coverage.of(
            self._looked,
            tensors=self._tensors,
            missing=missing,
            margin=self._margin,
            closest=self._closest,
        )


class UnchangedTensor(Rule):
    """A weight gets a gradient and never changes: the optimizer does not hold it, or its rate is zero.

    Two values of a tensor are taken to be the same when all its statistics are equal to the last bit. It
    fires for weights that are so in all saved training steps from the first on, at least ``saved_steps`` of
    them over at least ``span`` optimizer steps, and have a gradient that is not zero in each. Frozen
    parameters are left alone, also where they have kept a gradient from an earlier training; so are parameters
    behind a dead layer, whose gradient is zero. Where the hook has recorded what the optimizer holds, the finding says
    which of the two it is.

    Args:
        saved_steps: saved steps without a change.
        span: optimizer steps that these must span.
    """

    severity = Severity.WARNING

    def __init__(self, *, saved_steps: int = 10, span: int = 50) -> None:
        positive("saved_steps", saved_steps)
        positive("span", span)
        self.saved_steps = saved_steps
        self.span = span
        self._pairs: dict[TensorSet, tuple[NDArray[np.intp], NDArray[np.intp]]] = {}
        self._layout: TensorSet | None = None
        self._begin: NDArray[np.float64] | None = None
        self._still = np.zeros(0, np.intp)
        self._steps = SeenSteps()
        self._roles = Roles()
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if step.stats is None or not step.training or self._fired:
            return
        self._roles.observe(step)
        stats = step.stats
        weights, gradients = self._pairs_of(stats.tensors)
        if not len(weights):
            return
        if self._begin is None or self._layout is not stats.tensors:
            self._layout, self._begin = stats.tensors, stats.matrix[weights]
            self._still = np.flatnonzero(stats.abs_max[gradients] > 0)
            self._steps = SeenSteps()
            self._steps.append(step.step)
            return
        self._steps.append(step.step)
        values, begin = stats.matrix[weights[self._still]], self._begin[self._still]
        same = ((values == begin) | (np.isnan(values) & np.isnan(begin))).all(axis=1)
        self._still = self._still[same & (stats.abs_max[gradients[self._still]] > 0)]
        lasted = len(self._steps) >= self.saved_steps and step.step - self._steps[0] >= self.span
        if lasted and len(self._still):
            names = stats.tensors.names
            stuck = [row for row in self._still if names[weights[row]] not in self._roles.frozen]
            if stuck:
                self._fired = True
                yield self._say(step, stats, weights, np.array(stuck, np.intp))

    def _say(self, step: Step, stats: Stats, weights: NDArray[np.intp], stuck: NDArray[np.intp]) -> Finding:
        names = [stats.tensors.names[weights[i]] for i in stuck]
        every = len(stuck) == len(weights)
        which = "none of the weights has" if every else f"{names[0]} has not"
        others = f", nor have {len(names) - 1} others" if len(names) > 1 and not every else ""
        them = "it" if len(names) == 1 else "them"
        unheld = [name for name in names if name in self._roles.unheld]
        cause = ""
        if unheld:
            some = "" if len(unheld) == len(names) else f" {len(unheld)} of"
            cause = f": no optimizer holds{some} {them}"
        elif self._roles.known:
            cause = f"; an optimizer holds {them}: its updates are zero, or too small for the precision of the weights"
        return self.finding(
            step,
            first_step=self._steps[0],
            tensors=names[:_NAMED],
            value=len(names),
            threshold=0,
            message=f"{which} changed in {step.step - self._steps[0]} steps{others}, although gradients reach "
            f"{them}{cause}",
            suggestion="check the learning rate and its schedule, and that these parameters are in the "
            "optimizer's groups (layers added or replaced after it was made are not)",
            evidence={"series": names[:_NAMED], "column": "l2", "unit": "norm"},
        )

    def _pairs_of(self, tensors: TensorSet) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        pairs = self._pairs.get(tensors)
        if pairs is None:
            by_name = {name: i for i, name in enumerate(tensors.names)}
            rows = [
                (int(i), by_name[f"gradient/{tensors.names[i]}"])
                for i in tensors.rows("weights")
                if f"gradient/{tensors.names[i]}" in by_name
            ]
            left = np.array([w for w, _ in rows], dtype=np.intp)
            pairs = self._pairs[tensors] = (left, np.array([g for _, g in rows], dtype=np.intp))
        return pairs

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        spanned = self._steps[-1] - self._steps[0] if self._steps else 0
        if self._layout is None:
            missing = ("weights and gradients were not recorded together",)
        elif len(self._steps) < self.saved_steps or spanned < self.span:
            missing = (
                f"{len(self._steps)} saved steps over {spanned} steps; "
                f"at least {self.saved_steps} over {self.span} are needed",
            )
        return Coverage.of(
            self._steps,
            tensors=len(self._pairs_of(self._layout)[0]) if self._layout else 0,
            missing=missing,
        )
