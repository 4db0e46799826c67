"""Rules about the training loop itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from stepwatch.probe.store.schema import (
    EVAL_MODE_SCALAR,
    KEPT_GRADIENTS_SCALAR,
    LEFT_IN_EVAL_QUANTITY,
    PART_IN_EVAL_SCALAR,
    SKIPPED_SCALAR,
)
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step


class _UpdatesInARow(Rule):
    """Fires when the hook has counted that many updates in a row.

    Args:
        updates: so many are a mistake, at least 2.

    Attributes:
        scalar: what the hook counts.
        missing: what is missing where it recorded no such count.
        message: sentence of a finding, with places for ``count`` and ``step``.
        suggestion: what to try.
        unit: of the count.
        applied: whether the updates that are counted have been made, so that they lie before the step.
    """

    scalar: ClassVar[str]
    missing: ClassVar[str] = "no update of an optimizer was recorded by a hook that looks for it"
    message: ClassVar[str]
    suggestion: ClassVar[str]
    unit: ClassVar[str] = "updates"
    applied: ClassVar[bool] = True

    def __init__(self, *, updates: int = 20) -> None:
        if updates < 2:
            raise ValueError(f"updates is {updates}; expected 2 or more")
        self.updates = updates
        self._steps = 0
        self._first: int | None = None
        self._last: int | None = None
        self._recorded = False
        self._largest = 0.0
        self._said = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training:
            return
        self._steps += 1
        self._first = step.step if self._first is None else self._first
        self._last = step.step
        count = step.scalars.get(self.scalar)
        if count is None:
            return
        self._recorded = True
        self._largest = max(self._largest, count)
        if count >= self.updates and not self._said:
            self._said = True
            yield self.finding(
                step,
                first_step=max(0, step.step - int(count)) if self.applied else step.step,
                tensors=[],
                value=count,
                threshold=self.updates,
                message=self.message.format(count=int(count), step=step.step),
                suggestion=self.suggestion,
                evidence={"series": [self.scalar], "unit": self.unit},
            )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._recorded:
            missing = (self.missing,)
        elif self._steps < self.updates and not self._said:
            missing = (f"{self._steps} training steps; at least {self.updates} are needed",)
        return Coverage(
            decided=not missing,
            steps=self._steps,
            first_step=self._first,
            last_step=self._last,
            tensors=0,
            missing=missing,
            margin=self._largest / self.updates,
        )


class GradientsNotReset(_UpdatesInARow):
    """Nothing resets the gradients between updates, so that each update repeats all gradients since the start.

    The hook looks at a gradient of each optimizer at every backward pass: it counts as kept when it is still the
    one that the optimizer was given at its last step, unchanged and not zero, at every backward pass until the
    next step. Accumulation over micro-batches, several optimizers that take turns and every way to reset
    (``zero_grad``, ``grad = None``, ``grad.zero_()``) are told apart from it.

    Args:
        updates: updates in a row that make it certain, at least 2.
    """

    scalar = KEPT_GRADIENTS_SCALAR
    message = "nothing reset the gradients in the last {count} updates: each update adds up all gradients since"
    suggestion = "call optimizer.zero_grad() once per update, before its first backward()"


class ModelInEvalMode(_UpdatesInARow):
    """The model is trained in eval mode: dropout is off, and batch norm uses and keeps its old statistics.

    The usual cause is a ``model.eval()`` for validation that no ``model.train()`` follows. Only models that have
    such layers count, and only while all of them are in eval mode: batch norm frozen on purpose, in a model that
    is in train mode, does not.

    Args:
        updates: updates in a row that make it certain, at least 2.
    """

    severity = Severity.WARNING
    scalar = EVAL_MODE_SCALAR
    message = (
        "the last {count} updates were made with the model in eval mode: its dropout does nothing and its batch norm "
        "learns no statistics"
    )
    suggestion = "call model.train() after every evaluation"


class PartInEvalMode(_UpdatesInARow):
    """A part of the model was left in eval mode while it is trained: its dropout and batch norm do not work there.

    The usual causes are a pretrained part that is handed over in eval mode, of which no ``model.train()`` is called,
    and an ``encoder.eval()`` that nothing takes back. Counted at saved steps are dropout layers in eval mode, and batch
    norms that were in train mode before, in a model that is in train mode, where the parameters that they serve are
    trained. Frozen parts do not count, nor does a model all of whose batch norms are frozen.

    Args:
        updates: updates in a row that make it certain, at least 2.
    """

    severity = Severity.WARNING
    scalar = PART_IN_EVAL_SCALAR
    message = (
        "dropout and batch norm layers of the model were in eval mode in the last {count} updates, although it is in "
        "train mode and the parameters that they serve are trained"
    )
    suggestion = "call model.train() on the whole model before the first step and after every evaluation of a part"

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        for finding in super().observe(step):
            parts = {
                name: count for (name, quantity), count in step.derived.items() if quantity == LEFT_IN_EVAL_QUANTITY
            }
            path, (left, layers) = next(iter(parts.items()))
            where = f"{path or 'all over the model'}: {left:.0f} of the {layers:.0f} {finding.message}"
            yield replace(finding, tensors=(path,) if path else (), message=where)


class UpdatesSkipped(_UpdatesInARow):
    """A GradScaler leaves out every update, whatever the scale: nothing is learned, and no loss says so.

    A scaler that finds an overflow leaves the update out and halves its scale, once or twice now and then, and up to
    about sixteen times when a job begins. Gradients that are still not finite then are so by themselves.

    Args:
        updates: updates left out in a row that make it certain, at least 2.
    """

    scalar = SKIPPED_SCALAR
    missing = "no training step was recorded"
    message = (
        "the gradient scaler has left out the last {count} updates, after {step}: the gradients are not finite at any "
        "scale, and nothing is learned"
    )
    suggestion = (
        "look for the first tensor that is not finite (the forward pass, the loss, the inputs of this batch); train in "
        "bfloat16, or keep the operation that overflows in float32"
    )
    unit = "updates left out in a row"
    applied = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        self._recorded |= step.training  # a scaler that leaves nothing out records nothing
        yield from super().observe(step)


class ZeroLearningRate(Rule):
    """The learning rate is exactly zero: nothing is learned, whatever the loss does.

    A warm-up that begins at zero has it for a step, a schedule that ends at zero where the job ends. A rate that
    never was anything else is an error; one that a schedule has brought to zero long before the end a warning.

    Args:
        steps: steps in a row with a rate of zero in every parameter group, at least 2.
    """

    def __init__(self, *, steps: int = 50) -> None:
        if steps < 2:
            raise ValueError(f"steps is {steps}; expected 2 or more")
        self.steps = steps
        self._seen = 0
        self._first: int | None = None
        self._last: int | None = None
        self._zero_since: int | None = None
        self._zero = 0
        self._longest = 0
        self._was_positive = False
        self._said = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        rates = {name: value for name, value in step.scalars.items() if name.startswith("learning_rate")}
        if not step.training or not rates:
            return
        self._seen += 1
        self._first = step.step if self._first is None else self._first
        self._last = step.step
        if any(rates.values()):
            self._was_positive = True
            self._zero, self._zero_since = 0, None
            return
        self._zero += 1
        self._zero_since = step.step if self._zero_since is None else self._zero_since
        self._longest = max(self._longest, self._zero)
        if self._zero == self.steps and not self._said:
            self._said = True
            how = "since a schedule brought it there" if self._was_positive else "from the first step on"
            yield self.finding(
                step,
                first_step=self._zero_since,
                tensors=[],
                value=0.0,
                threshold=0.0,
                message=f"the learning rate has been exactly 0 for {self._zero} steps, {how}: nothing is learned",
                suggestion="check the schedule: its number of steps, the unit of its counter (epochs or steps), and "
                "whether warm-up multiplies by a number that starts at 0 and is never raised",
                evidence={"series": list(rates), "unit": "learning rate"},
                severity=Severity.WARNING if self._was_positive else Severity.ERROR,
            )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._seen:
            missing = ("no learning rate was recorded",)
        elif self._seen < self.steps:
            missing = (f"{self._seen} steps with a learning rate; at least {self.steps} are needed",)
        return Coverage(
            decided=not missing,
            steps=self._seen,
            first_step=self._first,
            last_step=self._last,
            tensors=0,
            missing=missing,
            margin=self._longest / self.steps,
        )
