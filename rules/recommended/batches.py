"""Rules about the batches that training sees one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.schema import BATCH_QUANTITY, PADDING_QUANTITY
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step


class _Batch(NamedTuple):
    step: int
    checksum: float
    number: int
    per_epoch: int


class RepeatedBatch(Rule):
    """Every step trains on the same batch, although the DataLoader has others.

    The usual causes are ``next(iter(loader))`` within the loop, which begins the loader anew each time, and a batch for
    a quick try that stayed in the script. It fires where ``patience`` saved training steps in a row, over at least
    ``updates`` updates, were given the same batch although the loader has two batches or more and none was due again.
    Full-batch training, a data set of one batch and the same order in every epoch are no findings; without a
    DataLoader nobody knows how much data there is, and nothing is said.

    Args:
        patience: repetitions between saved steps that make it certain, at least 2.
        updates: updates over which it must last.
    """

    severity = Severity.WARNING

    def __init__(self, *, patience: int = 8, updates: int = 50) -> None:
        if patience < 2:
            raise ValueError(f"patience is {patience}; expected 2 or more")
        if updates < 1:
            raise ValueError(f"updates is {updates}; expected 1 or more")
        self.patience = patience
        self.updates = updates
        self._name = ""
        self._before: _Batch | None = None
        self._since: int | None = None
        self._steps = SeenSteps()
        self._repeated = 0
        self._longest = 0.0
        self._compared = False
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training:
            return
        for name, (checksum, number, per_epoch) in _quantities(step, BATCH_QUANTITY):
            if self._name in ("", name):
                self._name = name
                self._steps.append(step.step)
                yield from self._compare(step, _Batch(step.step, checksum, int(number), int(per_epoch)))

    def _compare(self, step: Step, batch: _Batch) -> Iterator[Finding]:
        before, self._before = self._before, batch
        if before is None or batch.per_epoch < 2 or before.step == batch.step:
            return
        self._compared = True
        if batch.checksum != before.checksum:
            self._repeated, self._since = 0, None
            return
        fetched = batch.number - before.number
        if fetched and fetched % batch.per_epoch == 0:
            return  # it is its turn again
        self._repeated += 1
        self._since = before.step if self._since is None else self._since
        lasted = batch.step - self._since
        self._longest = max(self._longest, min(self._repeated / self.patience, lasted / self.updates))
        if self._longest >= 1 and not self._fired:
            self._fired = True
            how = "its DataLoader is begun anew for each" if fetched else "no other was taken from its DataLoader"
            yield self.finding(
                step,
                first_step=self._since,
                tensors=[self._name],
                value=lasted,
                threshold=self.updates,
                message=f"the last {lasted} updates were all made on the same batch, one of {batch.per_epoch}: {how}",
                suggestion="loop over the loader (for batch in loader), or keep one iterator; where the single batch "
                "was meant for a try, take it out",
                evidence={"series": [self._name], "quantity": BATCH_QUANTITY, "unit": "updates"},
            )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._steps:
            missing = ("no inputs of a model were recorded",)
        elif not self._compared:
            missing = ("two saved steps whose batches come from a DataLoader of two batches or more",)
        return Coverage.of(
            self._steps, tensors=1 if self._name else 0, missing=missing, margin=self._longest, closest=self._name
        )


class LabelsInOrder(Rule):
    """Batches hold one class each: the data is sorted by class and was not shuffled.

    The model learns to answer the class of the moment and forgets the others. A batch is pure when at least 95 % of
    its labels are of one class. Of the last ``batches`` saved training batches with at least 8 labels it fires where
    ``share`` are pure, of three classes or more (both, where there are two), and where random batches of that size
    would be pure in less than 5 % of the cases, by how frequent the classes are.

    Args:
        batches: saved batches that are looked at together, at least 10.
        share: share of them that must be pure, in (0, 1].
    """

    severity = Severity.WARNING
    derived = ("class_counts",)
    calibrated = (("share", "higher"),)

    def __init__(self, *, batches: int = 20, share: float = 0.6) -> None:
        if batches < 10:
            raise ValueError(f"batches is {batches}; expected 10 or more")
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; expected a number in (0, 1]")
        self.batches = batches
        self.share = share
        self._name = ""
        self._window: deque[tuple[int, NDArray[np.float64]]] = deque(maxlen=batches)
        self._steps = SeenSteps()
        self._margin = 0.0
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training:
            return
        for name, vector in _quantities(step, "class_counts"):
            labels = vector[: len(vector) // 2]
            if self._name not in ("", name) or labels.sum() < 8:
                continue
            self._name = name
            if self._window and self._window[-1][1].shape != labels.shape:
                self._window.clear()
            self._window.append((step.step, labels))
            self._steps.append(step.step)
            if len(self._window) == self.batches and not self._fired:
                yield from self._judge(step)

    def _judge(self, step: Step) -> Iterator[Finding]:
        labels = np.array([counts for _, counts in self._window])
        sizes = labels.sum(1)
        pure = labels.max(1) >= 0.95 * sizes
        frequency = labels.sum(0) / labels.sum()
        classes = int(np.count_nonzero(frequency))
        found = len(np.unique(labels[pure].argmax(1)))
        by_chance = float((frequency[None, :] ** (0.95 * sizes[:, None])).sum(1).mean())
        if by_chance >= 0.05 or found < min(3, max(classes, 2)):
            return
        share = float(pure.mean())
        self._margin = max(self._margin, share / self.share)
        if share < self.share:
            return
        self._fired = True
        yield self.finding(
            step,
            first_step=self._window[0][0],
            tensors=[self._name],
            value=share,
            threshold=self.share,
            message=f"{100 * share:.0f} % of the last {self.batches} saved batches hold one class each, {found} "
            f"classes in turn; of shuffled data {100 * by_chance:.1g} % would: the data comes sorted by class",
            suggestion="shuffle (DataLoader(..., shuffle=True), or once before a data set that is streamed)",
            evidence={"series": [self._name], "quantity": "class_counts", "unit": "share of batches"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._steps:
            missing = ("no labels of a cross-entropy loss were recorded, in batches of 8 or more",)
        elif len(self._steps) < self.batches:
            missing = (f"{len(self._steps)} saved batches of labels; at least {self.batches} are needed",)
        return Coverage.of(
            self._steps, tensors=1 if self._name else 0, missing=missing, margin=self._margin, closest=self._name
        )


class MostlyPadding(Rule):
    """Most of what is computed is padding.

    The share of padding is taken over all saved training batches so far, from an attention mask or from the padding
    index of the model's embedding. It fires where that is above ``share`` after ``batches`` of them. Nothing is learnt
    wrongly, if masks are right; the time is lost.

    Args:
        share: share of the entries of a batch that are padding, in (0, 1).
        batches: saved batches before it judges, at least 1.
    """

    severity = Severity.INFO
    calibrated = (("share", "higher"),)

    def __init__(self, *, share: float = 0.75, batches: int = 20) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share is {share}; expected a number in (0, 1)")
        if batches < 1:
            raise ValueError(f"batches is {batches}; expected 1 or more")
        self.share = share
        self.batches = batches
        self._name = ""
        self._steps = SeenSteps()
        self._counts = np.zeros(2)
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training:
            return
        for name, counts in _quantities(step, PADDING_QUANTITY):
            self._name = name
            self._counts += counts
            self._steps.append(step.step)
        if self._fired or len(self._steps) < self.batches or not self._share() > self.share:
            return
        self._fired = True
        yield self.finding(
            step,
            first_step=self._steps[0],
            tensors=[self._name],
            value=self._share(),
            threshold=self.share,
            message=f"{100 * self._share():.0f} % of the entries of {self._name} are padding, over {len(self._steps)} "
            "saved batches: most of the time is spent on nothing",
            suggestion="pad to the longest sequence of a batch and not to a fixed length, batch sequences of similar "
            "length, or pack several into one",
            evidence={"series": [self._name], "quantity": PADDING_QUANTITY, "unit": "share of entries"},
        )

    def _share(self) -> float:
        return float(self._counts[0] / self._counts[1]) if self._counts[1] else 0.0

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._steps:
            missing = ("neither an attention mask nor an embedding with a padding index was seen",)
        elif len(self._steps) < self.batches:
            missing = (f"{len(self._steps)} saved batches; at least {self.batches} are needed",)
        margin = self._share() / self.share
        return Coverage.of(self._steps, tensors=1 if self._name else 0, missing=missing, margin=margin)


def _quantities(step: Step, quantity: str) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """(tensor, vector) of each such quantity of a step."""
    return ((name, vector) for (name, kind), vector in step.derived.items() if kind == quantity)
