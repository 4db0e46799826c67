"""Rules about what a model makes of its inputs: answers that are all alike, activations and attention that run away."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.schema import OUTPUT_QUANTITY
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.recommended.inputs import Inputs
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import TrainingLoss, median, noise_of, spell
from stepwatch.rules.step import Step, TensorSet

_NAMED = 12
_AT_MOST = 10.0  # times the share, in any of the steps


class CollapsedOutput(Rule):
    """The model answers the same to every sample, although it did not before, and although samples differ.

    Of an output with at least two numbers for each sample, the variance between samples (averaged over the numbers)
    is held against the variance of all its entries. It has collapsed where that share was ``before`` or more and
    over the last ``patience`` saved training steps its median is below ``share`` and none is ten times that: embeddings
    of self-supervised training that are all one vector, a generator with one picture, a classifier with one answer.

    Args:
        share: share of the variance that is between samples, below which they are all alike, in (0, 1).
        before: share that it must have had at some step before, above ``share``.
        patience: saved training steps in a row, at least 2.
    """

    severity = Severity.WARNING
    calibrated = (("share", "lower"),)

    def __init__(self, *, share: float = 1e-5, before: float = 1e-2, patience: int = 20) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share is {share}; expected a number in (0, 1)")
        if not share < before:
            raise ValueError(f"before is {before}; expected more than share, {share}")
        if patience < 2:
            raise ValueError(f"patience is {patience}; expected 2 or more")
        self.share = share
        self.before = before
        self.patience = patience
        self._steps = SeenSteps()
        self._largest: dict[str, float] = {}
        self._small: dict[str, deque[tuple[int, float]]] = {}  # the latest steps in a row, and the share at each
        self._longest = 0
        self._said: set[str] = set()

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training or not step.derived:
            return
        found = {name: vector for (name, quantity), vector in step.derived.items() if quantity == OUTPUT_QUANTITY}
        if not found:
            return
        self._steps.append(step.step)
        inputs = Inputs(step)
        for name, (samples, between, total) in found.items():
            model = name.rpartition("_output_")[0]
            same = [alike for each, alike in zip(inputs.names, inputs.identical, strict=True) if each.startswith(model)]
            if samples < 4 or not 0 < total < math.inf or all(same):
                continue  # NaN is in no range
            share = between / total
            self._largest[name] = max(self._largest.get(name, 0.0), share)
            if share >= _AT_MOST * self.share or self._largest[name] < self.before:
                self._small.pop(name, None)
                continue
            recent = self._small.setdefault(name, deque(maxlen=self.patience))
            recent.append((step.step, share))
            usual = median([each for _, each in recent])
            if usual >= self.share:
                continue
            self._longest = max(self._longest, len(recent))
            if len(recent) == self.patience and name not in self._said:
                self._said.add(name)
                yield self._say(step, name, usual, recent[0][0])

    def _say(self, step: Step, name: str, share: float, first: int) -> Finding:
        return self.finding(
            step,
            first_step=first,
            tensors=[name],
            value=share,
            threshold=self.share,
            message=f"{name} is the same for all samples since step {first}: {100 * share:.2g} % of its variance is "
            f"between samples, it was {100 * self._largest[name]:.2g} % before",
            suggestion="lower the learning rate and look for dead units; in self-supervised training add what keeps "
            "embeddings apart (negatives, a stop-gradient, a variance term), in a GAN weaken the generator",
            evidence={"series": [name], "quantity": OUTPUT_QUANTITY, "unit": "variance"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._largest:
            missing = ("no output of a model with four samples or more and two numbers for each was recorded",)
        elif len(self._steps) < self.patience:
            missing = (f"{len(self._steps)} saved steps; at least {self.patience} are needed",)
        margin = self._longest / self.patience
        return Coverage.of(self._steps, tensors=len(self._largest), missing=missing, margin=margin)


class ExplodingActivation(Rule):
    """Activations run away: they have grown ``factor`` times over where they began, and go on growing.

    The root mean square of each activation is held against its own over the first five saved steps, or that of the
    median layer where that is larger (a layer that begins at zero may grow). It fires where it has been above
    ``factor`` times that in each of the last ``patience`` saved training steps and grew over them.

    Args:
        factor: multiple of the beginning, above 1.
        patience: saved training steps in a row, at least 2.
    """

    severity = Severity.WARNING
    calibrated = (("factor", "higher"),)
    _BEGINNING = 5

    def __init__(self, *, factor: float = 1000.0, patience: int = 5) -> None:
        if not factor > 1:
            raise ValueError(f"factor is {factor}; expected more than 1")
        if patience < 2:
            raise ValueError(f"patience is {patience}; expected 2 or more")
        self.factor = factor
        self.patience = patience
        self._tensors: TensorSet | None = None
        self._rows: NDArray[np.intp] = np.empty(0, np.intp)
        self._first: list[NDArray[np.float64]] = []
        self._began: NDArray[np.float64] = np.empty(0)
        self._recent: deque[NDArray[np.float64]] = deque(maxlen=patience)
        self._lasted: NDArray[np.int64] = np.empty(0, np.int64)
        self._steps = SeenSteps(patience)
        self._margin = 0.0
        self._closest = ""
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if step.stats is None or not step.training:
            return
        if step.stats.tensors is not self._tensors:
            rows = step.stats.tensors.rows("activations")
            if not len(rows):
                return
            self._tensors, self._rows, self._first = step.stats.tensors, rows, []
        self._steps.append(step.step)
        rms = np.hypot(step.stats.mean[self._rows], step.stats.std[self._rows])
        if len(self._first) < self._BEGINNING:
            self._first.append(rms)
            began = np.median(self._first, axis=0)
            self._began = np.maximum(began, np.median(began))
            self._lasted = np.zeros(len(rms), np.int64)
            self._recent.clear()
            return
        ratio = np.divide(rms, self._began, out=np.zeros_like(rms), where=self._began > 0)
        self._lasted = np.where(ratio > self.factor, self._lasted + 1, 0)
        self._recent.append(rms)
        worst = int(np.argmax(np.where(np.isfinite(ratio), ratio, 0)))
        if ratio[worst] / self.factor > self._margin:
            # Above 1 it is not said until it has lasted.
            lasted = 1.0 if self._fired else self._lasted.max() / self.patience
            self._margin = min(ratio[worst] / self.factor, max(lasted, 0.99))
            self._closest = f"{self._tensors.names[self._rows[worst]]} at step {step.step}"
        hit = np.flatnonzero((self._lasted >= self.patience) & (rms > self._recent[0]))
        if len(hit) and not self._fired:
            self._fired = True
            yield self._say(step, hit[np.argsort(-ratio[hit], kind="stable")], ratio)

    def _say(self, step: Step, hit: NDArray[np.intp], ratio: NDArray[np.float64]) -> Finding:
        assert self._tensors is not None
        names = [self._tensors.names[self._rows[at]] for at in hit]
        others = f" (and {len(names) - 1} other layers)" if len(names) > 1 else ""
        return self.finding(
            step,
            first_step=self._steps[-self.patience],
            tensors=names[:_NAMED],
            value=float(ratio[hit[0]]),
            threshold=self.factor,
            message=f"the activations of {names[0]}{others} are {spell(ratio[hit[0]])} times as large as where they "
            "began, and still grow",
            suggestion="lower the learning rate or add weight decay; look for a missing normalisation, or for a loss "
            "that nothing bounds",
            evidence={"series": names[:_NAMED], "column": "std", "unit": "standard deviation"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        needed = self._BEGINNING + self.patience
        if not self._steps:
            missing = ("no activation was recorded",)
        elif len(self._steps) < needed:
            missing = (f"{len(self._steps)} saved steps; at least {needed} are needed",)
        return Coverage.of(
            self._steps, tensors=len(self._rows), missing=missing, margin=self._margin, closest=self._closest
        )


_ATTENTION = re.compile(r"att(?:n|ention)", re.IGNORECASE)


class AttentionCollapse(Rule):
    """Attention has collapsed to single positions, and the loss has not fallen since.

    Where attention weights are recorded, the mean of the sums of squares of their rows, which is 1 for attention to
    a single position and 1 / S for even attention to S, follows from their statistics: as each row adds up to 1, it
    is l2^2 / l1. Attention that is learned to be sharp is no fault: it fires where that was below one half, has been
    over ``sharpness`` in each of the last ``patience`` saved training steps, and the median loss over their later
    half is not lower, beyond its noise, than it was over as many steps before (Zhai et al. 2023).

    Args:
        sharpness: mean sum of squares above which attention has collapsed, in (0.5, 1).
        patience: saved training steps in a row, at least 5.
    """

    severity = Severity.WARNING
    calibrated = (("sharpness", "higher"),)

    def __init__(self, *, sharpness: float = 0.9, patience: int = 20) -> None:
        if not 0.5 < sharpness < 1:
            raise ValueError(f"sharpness is {sharpness}; expected a number in (0.5, 1)")
        if patience < 5:
            raise ValueError(f"patience is {patience}; expected 5 or more")
        self.sharpness = sharpness
        self.patience = patience
        self._tensors: TensorSet | None = None
        self._rows: list[int] = []
        self._loss = TrainingLoss()
        self._lowest: dict[str, float] = {}
        self._since: dict[str, SeenSteps] = {}
        self._steps = SeenSteps()
        self._longest = 0.0
        self._said: set[str] = set()

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training:
            return
        self._loss.observe(step)
        if step.stats is None:
            return
        if step.stats.tensors is not self._tensors:
            self._tensors = step.stats.tensors
            self._rows = [
                row for row, name in enumerate(self._tensors.names) if _is_attention(name, self._tensors, row)
            ]
        stats, found = step.stats, []
        for row in self._rows:
            name = stats.tensors.names[row]
            if not (stats.min[row] >= 0 and stats.max[row] <= 1.001 and stats.l1[row] > 0):
                continue
            sharpness = float(stats.l2[row] ** 2 / stats.l1[row])
            self._lowest[name] = min(self._lowest.get(name, 1.0), sharpness)
            if sharpness < self.sharpness or self._lowest[name] > 0.5:
                self._since.pop(name, None)
                continue
            since = self._since.setdefault(name, SeenSteps())
            since.append(step.step)
            if len(since) >= self.patience and name not in self._said and not self._has_learned(since[0], step.step):
                self._said.add(name)
                found.append((name, sharpness, since[0]))
        if self._lowest:
            self._steps.append(step.step)
        if found:
            yield self._say(step, found)

    def _has_learned(self, first: int, last: int) -> bool:
        steps = np.array(self._loss.steps)
        values, stride = np.array(self._loss.values), self._loss.values.stride
        before = values[(steps >= 2 * first - last) & (steps < first)]
        after = values[steps >= (first + last) / 2]
        if not (len(before) and len(after)):
            return True
        noise = 1.25 * noise_of(values[steps >= first]) * math.sqrt(stride / len(before) + stride / len(after))
        return bool(np.median(after) < np.median(before) - 3 * noise)

    def _say(self, step: Step, found: list[tuple[str, float, int]]) -> Finding:
        name, sharpness, first = max(found, key=lambda each: each[1])
        others = f" (and {len(found) - 1} other tensors)" if len(found) > 1 else ""
        return self.finding(
            step,
            first_step=min(each[2] for each in found),
            tensors=[each[0] for each in found[:_NAMED]],
            value=sharpness,
            threshold=self.sharpness,
            message=f"the attention of {name}{others} has gone to single positions since step {first} (mean sum of "
            f"squares {spell(sharpness)}, {spell(self._lowest[name])} before), and the loss has not fallen since",
            suggestion="lower the learning rate or warm it up, normalise queries and keys, or clip their logits",
            evidence={"series": [each[0] for each in found[:_NAMED]], "column": "l2", "unit": "norm"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._lowest:
            missing = (
                "no attention weights were recorded (include_collections=[..., 'multiheadattention_output'] with "
                "need_weights, or hook.save_tensor('attention', weights))",
            )
        elif len(self._steps) < self.patience:
            missing = (f"{len(self._steps)} saved steps; at least {self.patience} are needed",)
        longest = max((len(since) for since in self._since.values()), default=0)
        margin = 1.0 if self._said else min(longest / self.patience, 0.99)
        return Coverage.of(self._steps, tensors=len(self._lowest), missing=missing, margin=margin)


def _is_attention(name: str, tensors: TensorSet, row: int) -> bool:
    info = tensors.infos[row]
    if info.module is None:  # saved by the script
        return bool(_ATTENTION.search(name))
    return info.module_type == "MultiheadAttention" and name.endswith("_output_1")
