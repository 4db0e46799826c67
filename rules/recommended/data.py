"""Rules about the data that a model is given."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import positive
from stepwatch.rules.step import Step


class ClassImbalance(Rule):
    """Rare classes are given up: the model predicts the frequent ones in their place.

    Imbalance alone is a property of the data, and no fault where the rare classes are learnt, which takes
    longer than the frequent ones. From the labels and predictions of training batches after the first
    ``warm_up`` steps, older ones fading by half every ``half_life`` saved steps, a class is rare when it has at
    most 1 / ``imbalance`` of the samples of the most frequent one. It fires when for ``lasting`` optimizer steps
    the rare classes together, with at least ``samples`` samples of weight, were predicted right in less than
    ``recall`` of the cases while the frequent class was in more than 80 %, and not better in the later half of these
    steps than in the earlier one (by two standard errors): what is being learnt is not given up.

    Args:
        imbalance: ratio between the most frequent class and a rare one.
        recall: share of rare samples predicted right below which they are given up, in (0, 1).
        samples: weight of samples of rare classes below which nothing is said.
        warm_up: steps before which predictions do not count.
        lasting: optimizer steps that it must last.
        half_life: saved steps after which a sample counts half.
    """

    severity = Severity.WARNING
    derived = ("class_counts",)
    calibrated = (("recall", "lower"),)

    def __init__(
        self,
        *,
        imbalance: float = 10.0,
        recall: float = 0.2,
        samples: int = 10,
        warm_up: int = 50,
        lasting: int = 200,
        half_life: int = 50,
    ) -> None:
        positive("imbalance", imbalance)
        positive("samples", samples)
        if not 0 < recall < 1:
            raise ValueError(f"recall is {recall}; expected a number in (0, 1)")
        self.imbalance = imbalance
        self.recall = recall
        self.samples = samples
        positive("half_life", half_life)
        self.warm_up = warm_up
        self.lasting = lasting
        self.half_life = half_life
        self._since: deque[tuple[int, NDArray[np.float64]]] = (
            deque()
        )  # labels and right ones of the steps that it lasts
        self._name = ""
        self._counts: NDArray[np.float64] | None = None
        self._steps = SeenSteps()
        self._margin = 0.0
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training or self._fired or step.step < self.warm_up:
            return
        for (name, quantity), vector in step.derived.items():
            if quantity == "class_counts" and (not self._name or name == self._name):
                self._name = name
                new = vector.reshape(2, -1)
                same = self._counts is not None and self._counts.shape == new.shape
                self._counts = self._counts * 0.5 ** (1 / self.half_life) + new if same else new.copy()  # type: ignore[operator]
                self._steps.append(step.step)
                yield from self._judge(step, new)

    def _judge(self, step: Step, new: NDArray[np.float64]) -> Iterator[Finding]:
        assert self._counts is not None
        labels, right = self._counts
        most = int(labels.argmax())
        rare = np.flatnonzero((labels > 0) & (labels <= labels[most] / self.imbalance))
        total = float(labels[rare].sum())
        if total < self.samples:
            self._since.clear()
            return
        recall = float(right[rare].sum() / total)
        if recall >= self.recall or right[most] <= 0.8 * labels[most]:
            self._since.clear()
            return
        self._since.append((step.step, new))
        while len(self._since) > 1 and self._since[1][0] <= step.step - self.lasting:
            self._since.popleft()
        lasted = step.step - self._since[0][0]
        self._margin = max(self._margin, min(lasted / self.lasting, 0.99))
        if lasted >= self.lasting and not _gets_better([counts[:, rare] for _, counts in self._since]):
            self._fired, self._margin = True, lasted / self.lasting
            ratio = labels[most] / labels[rare].min()
            listed = ", ".join(str(int(c)) for c in rare[:10]) + ("..." if len(rare) > 10 else "")
            yield self.finding(
                step,
                first_step=self._since[0][0],
                tensors=[self._name],
                value=recall,
                threshold=self.recall,
                message=f"the rare classes ({listed}) are predicted right in {100 * recall:.0f} % of their "
                f"samples, class {most} in {100 * right[most] / labels[most]:.0f} %; it is up to "
                f"{ratio:.0f} times as frequent",
                suggestion="weight the loss by class, sample rare classes more often, and judge by recall per "
                "class instead of accuracy",
                evidence={"series": [self._name], "quantity": "class_counts", "unit": "samples"},
            )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        needed = self.warm_up + self.lasting
        if self._counts is None:
            missing = (f"no labels of a cross-entropy loss were recorded after step {self.warm_up}",)
        elif self._steps[-1] < needed:
            missing = (f"labels up to step {self._steps[-1]}; it judges from step {needed} on",)
        return Coverage.of(
            self._steps,
            tensors=1 if self._name else 0,
            missing=missing,
            margin=self._margin,
            closest=self._name,
        )


def _gets_better(counts: list[NDArray[np.float64]]) -> bool:
    """Whether more of the labels are predicted right in the later half, from [labels, right] x classes of each step."""
    half = len(counts) // 2
    (before, right_before), (after, right_after) = (
        np.sum(part, axis=(0, 2)) for part in (counts[:half], counts[half:])
    )
    share = (right_before + right_after) / (before + after)
    error = math.sqrt(share * (1 - share) * (1 / max(before, 1) + 1 / max(after, 1)))
    return bool(right_after / max(after, 1) - right_before / max(before, 1) > 2 * error)
