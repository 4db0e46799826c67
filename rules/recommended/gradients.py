"""Rules about gradients: none left, too much, not a number."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Coverage, Finding
from stepwatch.rules.history import SeenSteps
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import RecentMedian, TrainingLoss, median, positive, spell
from stepwatch.rules.step import Stats, Step, TensorSet

_NAMED = 12


class VanishingGradient(Rule):
    """Almost no gradient reaches the first layers.

    The size of a layer's gradient is its root mean square, l2 / sqrt(numel), over weights of two dimensions
    and more; embeddings, of which a batch touches few rows, are left out. At each saved training step the
    median over the first quarter of the layers, in the order in which they run, is divided by that over the
    last quarter. Healthy networks lie between 0.01 and 100 there, whatever their depth; the rule fires when
    the ratio is below ``ratio`` in ``patience`` saved steps in a row that span at least ``span`` steps.
    Layers whose gradient is exactly zero are taken at their word unless all of the first quarter are (a
    frozen or zero-initialised layer is no vanishing gradient).

    Args:
        ratio: first quarter over last quarter.
        patience: saved steps in a row.
        span: optimizer steps that these must span.
        min_layers: layers below which depth means nothing.
    """

    calibrated = (("ratio", "lower"),)

    def __init__(self, *, ratio: float = 1e-4, patience: int = 5, span: int = 20, min_layers: int = 4) -> None:
        positive("ratio", ratio)
        positive("patience", patience)
        if min_layers < 2:
            raise ValueError(f"min_layers is {min_layers}; expected 2 or more")
        self.ratio = ratio
        self.patience = patience
        self.span = span
        self.min_layers = min_layers
        self._layers: dict[TensorSet, NDArray[np.intp]] = {}
        self._below: list[int] = []
        self._steps = SeenSteps()
        self._lowest = math.inf
        self._seen_layers = 0
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if step.stats is None or not step.training:
            return
        layers = self._layers_of(step.stats.tensors)
        self._seen_layers = max(self._seen_layers, len(layers))
        if len(layers) < self.min_layers:
            return
        rms = step.stats.l2[layers] / np.sqrt(step.stats.numel[layers])
        bad = (step.stats.n_nan[layers] + step.stats.n_inf[layers]) > 0
        quarter = max(1, len(layers) // 4)
        first, last = rms[:quarter], rms[-quarter:]
        self._steps.append(step.step)
        if bad.any() or not last.any() or not first.any():
            self._below.clear()
            return
        ratio = median(first[first > 0]) / median(last[last > 0])
        self._lowest = min(self._lowest, ratio)
        if ratio >= self.ratio:
            self._below.clear()
            return
        self._below.append(step.step)
        lasted = len(self._below) >= self.patience and step.step - self._below[0] >= self.span
        if lasted and not self._fired:
            self._fired = True
            names = [step.stats.tensors.names[i] for i in layers]
            yield self.finding(
                step,
                first_step=self._below[0],
                tensors=names[: min(quarter, _NAMED)],
                value=ratio,
                threshold=self.ratio,
                message=f"the gradient of the first layers is {spell(ratio)} of that of the last ones: "
                f"{names[0]} has a root mean square of {spell(rms[0])}, {names[-1]} of {spell(rms[-1])}",
                suggestion="use ReLU-like activations instead of sigmoid or tanh, normalisation layers, "
                "residual connections, or an initialisation that fits the activation (He, Xavier)",
                evidence={"series": names, "column": "rms", "unit": "gradient rms"},
            )

    def _layers_of(self, tensors: TensorSet) -> NDArray[np.intp]:
        rows = self._layers.get(tensors)
        if rows is None:
            infos = tensors.infos
            chosen = [
                int(i)
                for i in tensors.rows("gradients")
                if len(infos[i].shape) >= 2 and "Embedding" not in (infos[i].module_type or "")
            ]
            chosen.sort(key=lambda i: infos[i].order)
            rows = self._layers[tensors] = np.array(chosen, dtype=np.intp)
        return rows

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._seen_layers:
            missing = ("no gradients of layers were recorded",)
        elif self._seen_layers < self.min_layers:
            missing = (f"{self._seen_layers} layers; depth means something from {self.min_layers} on",)
        elif len(self._steps) < self.patience:
            missing = (f"{len(self._steps)} saved steps; at least {self.patience} are needed",)
        return Coverage.of(
            self._steps,
            tensors=self._seen_layers,
            missing=missing,
            margin=self.ratio / self._lowest if 0 < self._lowest < math.inf else None,
            closest="first layers against last",
        )


class ExplodingTensor(Rule):
    """A weight, gradient, activation or the training loss holds NaN or infinity, or gradients run away.

    Not finite: gradients and weights as the optimizer has them (a GradScaler's skipped steps are not among
    them), outputs of activations where they are NaN, and the training loss when the next loss is not
    finite either or the same step's tensors confirm it. The finding names the first tensor that went bad:
    a weight that was bad before the step, else the first activation in forward order, else the loss, else
    the last layer's gradient, from which the others have it.

    Running away: the norm of all gradients is more than ``factor`` times its median so far, in ``patience``
    saved steps in a row, while the training loss is worse than in its first steps. One spike is no
    explosion, and neither is a large gradient on a loss that falls.

    Weights run away when half of the weight matrices have grown to more than ``growth`` times their size at
    the first saved step, in as many saved steps, with the loss no better than the very first.

    Args:
        factor: multiple of the median gradient norm.
        growth: multiple of the first norm of a weight matrix.
        patience: saved steps in a row.
    """

    calibrated = (("factor", "higher"), ("growth", "higher"))

    def __init__(self, *, factor: float = 100.0, growth: float = 30.0, patience: int = 3) -> None:
        positive("factor", factor)
        positive("growth", growth)
        positive("patience", patience)
        self.growth = growth
        self._weights = _WeightGrowth()
        self._grown: list[int] = []
        self.factor = factor
        self.patience = patience
        self._loss = TrainingLoss()
        self._bad_loss: tuple[int, str, float] | None = None
        self._bad_losses = 0
        self._norms = RecentMedian(200)
        self._above: list[int] = []
        self._steps = 0
        self._first: int | None = None
        self._last: int | None = None
        self._tensors = 0
        self._margin = 0.0
        self._fired = False

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        if not step.training or self._fired:
            return
        losses = step.train_losses()
        self._loss.observe(step)
        if losses or step.stats is not None:
            self._steps += 1
            self._first = step.step if self._first is None else self._first
            self._last = step.step
        bad_name = next((name for name, value in losses.items() if not math.isfinite(value)), None)
        if bad_name is None:
            self._bad_losses = 0 if losses else self._bad_losses
        else:
            self._bad_losses += 1
            if self._bad_loss is None or self._bad_losses == 1:
                self._bad_loss = (step.step, bad_name, losses[bad_name])
        if step.stats is not None:
            yield from self._judge_tensors(step, step.stats, bad_name is not None)
        if not self._fired and self._bad_losses >= 2 and self._bad_loss is not None:
            first, name, value = self._bad_loss
            yield self._say_loss(step, first, name, value)

    def _judge_tensors(self, step: Step, stats: Stats, bad_loss: bool) -> Iterator[Finding]:
        self._tensors = max(self._tensors, len(stats.tensors))
        if np.count_nonzero(stats.n_nan) or np.count_nonzero(stats.n_inf):
            culprit = _first_bad(stats)
            if culprit is not None:
                yield self._say_tensor(step, stats, culprit, bad_loss)
                return
        yield from self._judge_growth(step, stats)
        rows = stats.tensors.rows("gradients")
        if not len(rows) or self._fired:
            return
        norm = float(np.sqrt(np.square(stats.l2[rows]).sum()))
        usual = self._norms.median() if len(self._norms) >= 10 else math.inf
        if math.isfinite(usual) and usual > 0:
            self._margin = max(self._margin, norm / usual / self.factor)
        if norm > self.factor * usual and usual > 0:
            self._above.append(step.step)
        else:
            self._above.clear()
            self._norms.add(norm)
        if len(self._above) >= self.patience and self._worse_than_at_first():
            self._fired = True
            order = np.argsort(-stats.l2[rows])[:_NAMED]
            names = [stats.tensors.names[i] for i in rows[order]]
            yield self.finding(
                step,
                first_step=self._above[0],
                tensors=names,
                value=norm,
                threshold=self.factor * usual,
                message=f"the gradients have grown to a norm of {spell(norm)}, {spell(norm / usual)} times the "
                f"usual {spell(usual)}; the largest is that of {names[0]}",
                suggestion="lower the learning rate, clip gradients by norm, add warm-up",
                evidence={"series": names, "column": "l2", "unit": "gradient norm"},
            )

    def _judge_growth(self, step: Step, stats: Stats) -> Iterator[Finding]:
        rows, ratios = self._weights.growth(stats)
        losses = self._loss.values
        worse = bool(losses) and losses[-1] > losses[0]
        middle = median(ratios) if worse and len(ratios) else 0.0
        if middle <= self.growth:
            self._grown.clear()
            return
        self._grown.append(step.step)
        if len(self._grown) >= self.patience:
            self._fired = True
            largest = np.argsort(-ratios, kind="stable")[:_NAMED]
            names = [stats.tensors.names[i] for i in rows[largest]]
            yield self.finding(
                step,
                first_step=self._grown[0],
                tensors=names,
                value=middle,
                threshold=self.growth,
                message=f"the weights have grown to {spell(middle)} times their initial size (median over "
                f"{len(rows)} matrices; {names[0]} to {spell(ratios[largest].max())} times) and the loss is no better "
                "than at the first step",
                suggestion="lower the learning rate by one or more powers of ten",
                evidence={"series": names, "column": "l2", "unit": "norm"},
            )

    def _worse_than_at_first(self) -> bool:
        values = self._loss.values
        return len(values) > 10 and not values[-1] < max(values[:5])

    def _say_tensor(self, step: Step, stats: Stats, row: int, bad_loss: bool) -> Finding:
        self._fired = True
        names = stats.tensors.names
        count = int(stats.n_nan[row] + stats.n_inf[row])
        what = "NaN" if stats.n_nan[row] else "infinity"
        affected = np.flatnonzero(stats.n_nan + stats.n_inf)
        first = step.step
        if self._bad_loss is not None and self._bad_losses:
            first = self._bad_loss[0]
        elif "gradients" not in stats.tensors.infos[row].collections and step.step > 0:
            first = step.step - 1  # a bad weight was made by the update before
        others = f", and {len(affected) - 1} other tensors" if len(affected) > 1 else ""
        loss = " after the loss" if bad_loss and "gradients" in stats.tensors.infos[row].collections else ""
        return self.finding(
            step,
            first_step=first,
            tensors=[names[row], *(names[i] for i in affected if i != row)][:_NAMED],
            value=count,
            threshold=0,
            message=f"{names[row]} holds {what} in {count} of {int(stats.numel[row])} entries at step "
            f"{step.step}; it is the first tensor that went bad{loss}{others}",
            suggestion=_advice(what),
            evidence={
                "series": [names[row]],
                "column": "n_nan" if what == "NaN" else "n_inf",
                "unit": "entries",
            },
        )

    def _say_loss(self, step: Step, first: int, name: str, value: float) -> Finding:
        self._fired = True
        what = "NaN" if math.isnan(value) else "infinity"
        return self.finding(
            step,
            first_step=first,
            tensors=[name],
            value=value,
            threshold=math.inf,
            message=f"the training loss became {what} at step {first} and is not finite since",
            suggestion=_advice(what),
            evidence={"series": [name], "unit": "loss"},
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing = () if self._steps else ("neither losses nor tensors of training steps were recorded",)
        return Coverage(
            decided=not missing,
            steps=self._steps,
            first_step=self._first,
            last_step=self._last,
            tensors=self._tensors,
            missing=missing,
            margin=self._margin,
            closest="norm of all gradients",
        )


class _WeightGrowth:
    """How large each weight matrix is, measured by what it was when it was first seen."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._first = np.zeros(0)
        self._places: dict[TensorSet, tuple[NDArray[np.intp], NDArray[np.intp]]] = {}

    def growth(self, stats: Stats) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """(rows of the weight matrices that are not zero, their norm over their first one)."""
        rows, numbers = self._place(stats.tensors)
        if not len(rows):
            return rows, np.zeros(0)
        sizes = stats.l2[rows]
        some = sizes > 0
        if np.count_nonzero(some) < len(rows):
            rows, numbers, sizes = rows[some], numbers[some], sizes[some]
        new = self._first[numbers] == 0
        if np.count_nonzero(new):
            self._first[numbers[new]] = sizes[new]
        return rows, sizes / self._first[numbers]

    def _place(self, tensors: TensorSet) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        place = self._places.get(tensors)
        if place is None:
            rows = [int(i) for i in tensors.rows("weights") if len(tensors.infos[i].shape) >= 2]
            numbers = [self._numbers.setdefault(tensors.names[i], len(self._numbers)) for i in rows]
            self._first = np.append(self._first, np.zeros(len(self._numbers) - len(self._first)))
            place = self._places[tensors] = np.array(rows, dtype=np.intp), np.array(numbers, dtype=np.intp)
        return place


def _first_bad(stats: Stats) -> int | None:
    """Row of the tensor from which the others have it, or None where only harmless ones are concerned."""
    bad = stats.n_nan + stats.n_inf
    infos = stats.tensors.infos

    def among(collection: str, counts: NDArray[np.float64], latest: bool) -> int | None:
        rows = [int(i) for i in stats.tensors.rows(collection) if counts[i] > 0]
        if not rows:
            return None
        return max(rows, key=lambda i: infos[i].order) if latest else min(rows, key=lambda i: infos[i].order)

    for collection, counts, latest in (
        ("weights", bad, False),
        ("biases", bad, False),
        ("activations", stats.n_nan, False),
        ("gradients", bad, True),
    ):
        row = among(collection, counts, latest)
        if row is not None:
            return row
    return None


def _advice(what: str) -> str:
    if what == "NaN":
        return (
            "look at what that layer computes: a logarithm or division that meets zero, a square root of "
            "zero in the backward pass, bad input values; a learning rate that is too high also ends here"
        )
    return "lower the learning rate or clip gradients; in half precision use a GradScaler or bfloat16"
