"""Which classes are taken for which others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Finding
from stepwatch.rules.sagemaker.base import WHOLE, SageMakerRule, at_least, fraction
from stepwatch.rules.sagemaker.selection import Selection, first_of
from stepwatch.rules.step import Step


class Confusion(SageMakerRule):
    """A class is predicted too seldom right, or another too often in its place.

    At each saved step on its own, c[j][i] counts the samples of class j predicted as i. Of those predicted as i
    the share with label i is below ``min_diag``, or the share with another label is above ``max_off_diag``. Classes
    that were never predicted are passed over. The published formula divides the diagonal by its own sum, by which
    a perfect prediction of ten classes would fire; the diagonal is divided as the rest is.

    Needs whole tensors: labels with one number for each sample; predictions with one, rounded, or with one for each
    class, of which the largest counts.

    Args:
        category_no: number of classes; the larger number found in labels and predictions where it is None.
        labels: name of the labels; where there is no such tensor ``labels_collection`` is looked at.
        predictions: name of the predictions; where there is no such tensor ``predictions_collection`` is.
        labels_collection: collection of the labels.
        predictions_collection: collection of the predictions.
        min_diag: least share predicted right, from 0 to 1.
        max_off_diag: largest share of one wrong class, from 0 to 1.
    """

    whole_tensors = True
    nothing = f"no labels with predictions were recorded; it {WHOLE}"

    def __init__(
        self,
        *,
        category_no: int | None = None,
        labels: str = "labels",
        predictions: str = "predictions",
        labels_collection: str = "labels",
        predictions_collection: str = "predictions",
        min_diag: float = 0.9,
        max_off_diag: float = 0.1,
    ) -> None:
        super().__init__()
        if category_no is not None:
            at_least("category_no", category_no, 2)
        fraction("min_diag", min_diag)
        fraction("max_off_diag", max_off_diag)
        self.category_no = category_no
        self.labels = labels
        self.predictions = predictions
        self.min_diag = min_diag
        self.max_off_diag = max_off_diag
        self._labels = Selection((labels_collection,))
        self._predictions = Selection((predictions_collection,))

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        labels = self._find(step, self.labels, self._labels)
        predictions = self._find(step, self.predictions, self._predictions)
        if labels is None or predictions is None:
            return None
        (name, values), (predicted_name, predicted) = labels, predictions
        if predicted.ndim > values.ndim and predicted.shape[-1] > 1:
            predicted = predicted.argmax(axis=-1)
        truth = np.rint(values).astype(np.int64).reshape(-1)
        guess = np.rint(predicted).astype(np.int64).reshape(-1)
        if len(truth) != len(guess) or not len(truth) or min(truth.min(), guess.min()) < 0:
            self.lacks(f"{predicted_name} has {len(guess)} entries for {len(truth)} of {name}, or they are no classes")
            return None
        classes = self.category_no or int(max(truth.max(), guess.max())) + 1
        known = (truth < classes) & (guess < classes)
        counts = np.zeros((classes, classes))
        np.add.at(counts, (truth[known], guess[known]), 1)
        self.looked_at(step, 2)
        return self._judge_counts(step, [name, predicted_name], counts)

    def _find(self, step: Step, name: str, collection: Selection) -> tuple[str, NDArray[Any]] | None:
        if name in step.values:
            return name, step.values[name]
        return first_of({key: value for key, value in collection.values(step).items() if value.size > 1})

    def _judge_counts(self, step: Step, names: list[str], counts: NDArray[np.float64]) -> Finding | None:
        predicted = counts.sum(axis=0)
        shares = np.divide(counts, predicted, out=np.full_like(counts, math.nan), where=predicted > 0)
        right = np.diag(shares).copy()
        wrong = shares.copy()
        np.fill_diagonal(wrong, math.nan)
        if np.isnan(right).all():
            return None
        worst = int(np.nanargmin(right))
        self.came_near(self.min_diag / right[worst] if right[worst] else math.inf, names[0])
        suggestion = "look at samples of the two classes, at their labels, and weight or sample by class"
        if right[worst] < self.min_diag:
            return self.fire(
                step,
                names,
                [right[worst]],
                threshold=self.min_diag,
                message=f"of the samples predicted as class {worst} at step {step.step}, only "
                f"{100 * right[worst]:.3g} % are of it",
                suggestion=suggestion,
                unit="share predicted right",
            )
        label, guess = np.unravel_index(int(np.nanargmax(wrong)) if len(counts) > 1 else 0, wrong.shape)
        if not wrong[label, guess] > self.max_off_diag:
            return None
        return self.fire(
            step,
            names,
            [wrong[label, guess]],
            threshold=self.max_off_diag,
            message=f"of the samples predicted as class {guess} at step {step.step}, "
            f"{100 * wrong[label, guess]:.3g} % are of class {label}",
            suggestion=suggestion,
            unit="share of a wrong class",
        )
