"""Rules that compare what the ranks of a job computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.rules.finding import Coverage, Finding
from stepwatch.rules.rule import Rule
from stepwatch.rules.series import positive
from stepwatch.rules.step import Step, TensorSet

_COLUMNS = [STAT_COLUMNS.index(name) for name in ("min", "max", "l2", "abs_max")]
_EVERY_STEP = 256
_NAMED = 12


@dataclass
class _Weights:
    """What is compared of the weights and biases of one rank at one step.

    Attributes:
        tensors: the tensors of the step.
        rows: those of them that are weights or biases recorded in full.
        values: float32 [rows, 4]: smallest, largest, norm, largest magnitude.
        gradients: norms of all gradients of the step.
    """

    step: int
    tensors: TensorSet
    rows: NDArray[np.intp]
    values: NDArray[np.float32]
    gradients: NDArray[np.float32]


@dataclass
class _Replica:
    """How one rank compares with rank 0.

    Attributes:
        waiting: steps that rank 0 has not recorded yet.
        pair, here, there: the tensor sets compared last, and the rows of the tensors that both have.
        equal: whether each was equal at some step.
        apart: compared steps in a row at which each was equal no more.
        since: the first of these steps.
        local: share of the gradients that differed when all weights were equal last; None where that is not known.
    """

    waiting: deque[_Weights] = field(default_factory=lambda: deque(maxlen=_EVERY_STEP))
    pair: tuple[TensorSet, TensorSet] | None = None
    here: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    there: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    names: list[str] = field(default_factory=list)
    equal: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    apart: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    since: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    local: float | None = None
    said: bool = False


class ReplicaDrift(Rule):
    """Ranks that began with the same weights do not have the same weights any more.

    Of every weight and bias that a rank and rank 0 recorded in full, the smallest and largest entry and the norm are
    compared at the same saved step. Replicas that average their gradients agree to the last bit; tensors that agreed
    once and differ for good are trained apart. What never agreed (pipeline stages, ensembles) is not compared. Of the
    first 256 saved training steps each is looked at, of later ones fewer the later they are. Gradients that differed
    while the weights were equal were not averaged, which names the cause: DistributedDataParallel was bypassed.

    Args:
        tolerance: difference that rounding does not explain, as a share of the largest magnitude, above 0.
        patience: compared steps in a row at which they differ, at least 2.
        span: steps between the first and the last of them, at least 1.
    """

    compares_ranks = True

    calibrated = (("tolerance", "higher"),)

    def __init__(self, *, tolerance: float = 1e-5, patience: int = 10, span: int = 50) -> None:
        if patience < 2:
            raise ValueError(f"patience is {patience}; expected 2 or more")
        if span < 1:
            raise ValueError(f"span is {span}; expected 1 or more")
        positive("tolerance", tolerance)
        self.tolerance = tolerance
        self.patience = patience
        self.span = span
        self._reference: dict[int, _Weights] = {}
        self._reached = -1
        self._saved = 0
        self._chosen: dict[TensorSet, NDArray[np.intp]] = {}
        self._replicas: dict[int, _Replica] = {}
        self._compared: list[int] = []
        self._longest = 0
        self._closest = ""

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class; steps of all ranks, those of each in order."""
        if step.stats is None or not step.training:
            return
        rows = self._rows(step.stats.tensors)
        stats = step.stats
        with np.errstate(over="ignore"):  # what has run away is infinite here
            values = stats.matrix[rows[:, None], _COLUMNS].astype(np.float32)
            gradients = stats.l2[stats.tensors.rows("gradients")].astype(np.float32)
        weights = _Weights(step.step, stats.tensors, rows, values, gradients)
        if step.rank != 0:
            replica = self._replicas.setdefault(step.rank, _Replica())
            replica.waiting.append(weights)
            yield from self._catch_up(step.rank, replica, step)
            return
        count, self._saved = self._saved, self._saved + 1
        if count < _EVERY_STEP or (count & -count) * _EVERY_STEP >= count:
            self._reference[step.step] = weights
        self._reached = step.step
        for rank, replica in self._replicas.items():
            yield from self._catch_up(rank, replica, step)

    def forget(self, rank: int) -> None:
        """A new attempt has replaced steps of a rank."""
        if rank == 0:
            self._reference.clear()
            self._replicas.clear()
            self._reached, self._saved = -1, 0
        self._replicas.pop(rank, None)

    def _rows(self, tensors: TensorSet) -> NDArray[np.intp]:
        rows = self._chosen.get(tensors)
        if rows is None:
            every = np.concatenate([tensors.rows("weights"), tensors.rows("biases")])
            rows = self._chosen[tensors] = np.array([r for r in every if not tensors.infos[r].shards], dtype=np.intp)
        return rows

    def _catch_up(self, rank: int, replica: _Replica, step: Step) -> Iterator[Finding]:
        while replica.waiting and replica.waiting[0].step <= self._reached:
            weights = replica.waiting.popleft()
            reference = self._reference.get(weights.step)
            if reference is not None and not replica.said:
                yield from self._compare(rank, replica, reference, weights, step)

    def _compare(
        self, rank: int, replica: _Replica, reference: _Weights, weights: _Weights, step: Step
    ) -> Iterator[Finding]:
        if replica.pair != (reference.tensors, weights.tensors):
            _align(replica, reference, weights)
        if not replica.names:
            return
        self._compared.append(weights.step)
        there, here = reference.values[replica.there], weights.values[replica.here]
        with np.errstate(invalid="ignore", over="ignore"):
            distance = np.abs(there - here).max(axis=1) / np.maximum(there[:, 3], np.finfo(np.float32).tiny)
        differs = distance > self.tolerance  # what is not finite on either side is no difference
        replica.equal |= distance <= self.tolerance
        apart = differs & replica.equal
        replica.since = np.where(apart & (replica.apart == 0), weights.step, replica.since)
        replica.apart = np.where(apart, replica.apart + 1, 0)
        if not apart.any():
            replica.local = self._local_gradients(reference, weights)
        worst = int(replica.apart.argmax())
        if replica.apart[worst] > self._longest:
            self._longest = int(replica.apart[worst])
            self._closest = f"{replica.names[worst]} of rank {rank} at step {weights.step}"
        drifted = (replica.apart >= self.patience) & (weights.step - replica.since >= self.span)
        if drifted.any():
            replica.said = True
            yield self._say(rank, replica, distance, weights.step, step)

    def _local_gradients(self, reference: _Weights, weights: _Weights) -> float | None:
        """Share of the gradients that are not those of the reference; None where they cannot be compared."""
        one, other = reference.gradients, weights.gradients
        if not len(one) or one.shape != other.shape or not np.isfinite([one, other]).all():
            return None
        return float(np.mean(np.abs(one - other) > self.tolerance * one))

    def _say(self, rank: int, replica: _Replica, distance: NDArray[np.float32], last_step: int, step: Step) -> Finding:
        apart = np.flatnonzero(replica.apart)
        order = apart[np.argsort(-distance[apart], kind="stable")]
        names = [replica.names[index] for index in order]
        first = int(replica.since[apart].min())
        worst = float(distance[order[0]])
        return Finding(
            rule=self.name,
            severity=self.severity,
            first_step=first,
            last_step=last_step,
            tensors=tuple(names[:_NAMED]),
            value=worst,
            threshold=self.tolerance,
            message=f"rank {rank} no longer has the weights of rank 0, which it had until step {first}: "
            f"{len(names)} of {len(replica.names)} tensors differ, {names[0]} by {100 * worst:.2g} %"
            f"{_cause(replica.local)}",
            suggestion=_suggestion(replica.local),
            evidence={"series": names[:6], "column": "l2", "unit": "norm"},
            rank=rank,
        )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing: tuple[str, ...] = ()
        if not self._replicas:
            missing = ("weights of one rank only: there is none to compare them with",)
        elif not self._compared:
            missing = ("no weight was recorded in full by rank 0 and another rank at the same step",)
        elif len(self._compared) < self.patience:
            missing = (f"{len(self._compared)} steps compared; at least {self.patience} are needed",)
        return Coverage(
            decided=not missing,
            steps=len(self._compared),
            first_step=min(self._compared, default=None),
            last_step=max(self._compared, default=None),
            tensors=sum(len(replica.names) for replica in self._replicas.values()),
            missing=missing,
            margin=self._longest / self.patience if self._compared else None,
            closest=self._closest,
        )


def _cause(local: float | None) -> str:
    if local is None:
        return ""
    if local == 0:
        return "; their gradients were the same before, so that the updates were not"
    which = "their gradients" if local > 0.9 else f"{100 * local:.0f} % of their gradients"
    return f"; {which} differed before: they are not averaged over the ranks"


def _suggestion(local: float | None) -> str:
    if local == 0:
        return (
            "compare what the ranks do with the same gradient: learning rates, clipping by a local norm, updates that "
            "one of them skips, weights that are changed in place"
        )
    return (
        "call the wrapped model (not model.module, nor its parts), reduce the gradients of every parameter, and change "
        "or clip gradients by nothing that only one rank knows"
    )


def _align(replica: _Replica, reference: _Weights, weights: _Weights) -> None:
    """Find the tensors that both ranks have, in the same shape; what is known of them is kept."""
    known = {name: place for place, name in enumerate(replica.names)}
    there = {reference.tensors.names[row]: place for place, row in enumerate(reference.rows)}
    common = []
    for place, row in enumerate(weights.rows):
        name = weights.tensors.names[row]
        other = there.get(name)
        if (
            other is not None
            and weights.tensors.infos[row].shape == reference.tensors.infos[reference.rows[other]].shape
        ):
            common.append((name, place, other))
    old = np.array([known.get(name, -1) for name, _, _ in common], dtype=np.intp)
    fresh = old < 0
    replica.names = [name for name, _, _ in common]
    replica.here = np.array([place for _, place, _ in common], dtype=np.intp)
    replica.there = np.array([other for _, _, other in common], dtype=np.intp)
    if len(known):
        replica.equal = np.where(fresh, False, replica.equal[old])
        replica.apart = np.where(fresh, 0, replica.apart[old])
        replica.since = np.where(fresh, 0, replica.since[old])
    else:
        replica.equal = np.zeros(len(common), np.bool_)
        replica.apart, replica.since = np.zeros(len(common), np.int64), np.zeros(len(common), np.int64)
    replica.pair = (reference.tensors, weights.tensors)
