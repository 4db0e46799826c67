"""Which tensors of a step a rule looks at: by collection, by regular expression, or all."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.collections import CollectionRegistry
from stepwatch.probe.store.schema import REDUCTION_QUANTITY, STAT_COLUMNS
from stepwatch.rules.parameters import split_list
from stepwatch.rules.reduced import reductions_of, statistics_of
from stepwatch.rules.step import StatColumns, Step, TensorSet, is_captured_loss, is_loss

_BUILT_IN = CollectionRegistry(None, None)
_OURS = re.compile(r"^(stepwatch/|learning_rate(/|$))")


class Chosen(StatColumns):
    """The chosen tensors of one step: names, and their statistics.

    Of a tensor of which smdebug saved reductions and nothing else, columns that these do not tell are NaN.
    """

    __slots__ = ("names",)

    def __init__(self, names: tuple[str, ...], matrix: NDArray[np.float64]) -> None:
        super().__init__(matrix)
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether every entry is finite, and there is one: else a reduction in smdebug would be NaN."""
        return np.asarray((self.n_nan + self.n_inf == 0) & (self.numel > 0))


class Selection:
    """Tensors that are in one of these collections or in whose name one of these expressions is found.

    Losses and logged scalars are tensors of one entry. Captured losses are looked at where the step was
    saved, although they are recorded at every step; logged scalars at every step, as in smdebug.

    Args:
        collections: names of collections; "all" holds everything.
        patterns: regular expressions, searched for in names.
        everything: choose all tensors where neither is given; without it none.

    Raises:
        ValueError: an expression that cannot be compiled.
    """

    def __init__(
        self,
        collections: Sequence[str] | None = None,
        patterns: Sequence[str] | None = None,
        *,
        everything: bool = False,
    ) -> None:
        self._collections = frozenset(spelled(collections))
        self._patterns = [compiled(pattern) for pattern in spelled(patterns)]
        self._all = "all" in self._collections or (everything and not self._collections and not self._patterns)
        self._rows: dict[TensorSet, tuple[NDArray[np.intp], tuple[str, ...]]] = {}
        self._scalars: dict[str, bool] = {}

    def __str__(self) -> str:
        if self._all:
            return "all tensors"
        parts = [f"collection {name}" for name in sorted(self._collections)]
        return " or ".join([*parts, *(f"'{pattern.pattern}'" for pattern in self._patterns)])

    def matches(self, name: str, collections: Sequence[str]) -> bool:
        """Whether a tensor of that name in these collections is chosen."""
        if any(pattern.search(name) for pattern in self._patterns):
            return True
        return not self._collections.isdisjoint(collections) or (self._all and not _OURS.search(name))

    def of(self, step: Step) -> Chosen:
        """The chosen tensors of a step with their statistics."""
        names: tuple[str, ...] = ()
        matrix = np.empty((0, len(STAT_COLUMNS)))
        if step.stats is not None:
            rows, names = self._in(step.stats.tensors)
            matrix = step.stats.matrix if len(rows) == len(step.stats.matrix) else step.stats.matrix[rows]
        extra = {name: _as_statistics(value) for name, value in self.scalars(step).items()}
        if any(quantity.startswith(REDUCTION_QUANTITY) for _, quantity in step.derived):
            extra |= self._reduced(step, names)
        if extra:
            return Chosen((*names, *extra), np.concatenate([matrix, np.array(list(extra.values()))]))
        return Chosen(names, matrix)

    def _reduced(self, step: Step, known: tuple[str, ...]) -> dict[str, list[float]]:
        """Statistics of the chosen tensors of which the step has reductions only."""
        found = reductions_of(step)
        left = found.keys() - set(known)
        return {name: statistics_of(found[name]) for name in found if name in left and self._takes_tensor(name)}

    def _takes_tensor(self, name: str) -> bool:
        return self.matches(name, _BUILT_IN.of_tensor(name))

    def values(self, step: Step) -> dict[str, NDArray[Any]]:
        """The chosen tensors of a step that are there whole."""
        if step.values and step.stats is not None:
            _, names = self._in(step.stats.tensors)
            found = {name: step.values[name] for name in names if name in step.values}
        else:
            found = {name: value for name, value in step.values.items() if self.matches(name, ())}
        return {**found, **{name: np.array([value]) for name, value in self.scalars(step).items()}}

    def scalars(self, step: Step) -> dict[str, float]:
        """The chosen losses and logged scalars of a step."""
        held: Mapping[str, float] = step.scalars
        return {
            name: value
            for name, value in held.items()
            if self._takes(name) and (step.saved or not is_captured_loss(name))
        }

    def _takes(self, name: str) -> bool:
        found = self._scalars.get(name)
        if found is None:
            found = self._scalars[name] = self.matches(name, ("losses",) if is_loss(name) else ("metrics", "scalars"))
        return found

    def _in(self, tensors: TensorSet) -> tuple[NDArray[np.intp], tuple[str, ...]]:
        found = self._rows.get(tensors)
        if found is None:
            infos = zip(tensors.names, tensors.infos, strict=True)
            rows = [row for row, (name, info) in enumerate(infos) if self.matches(name, info.collections)]
            found = np.array(rows, dtype=np.intp), tuple(tensors.names[row] for row in rows)
            self._rows[tensors] = found
        return found


def first_of(values: Mapping[str, NDArray[Any]]) -> tuple[str, NDArray[Any]] | None:
    """The first of these tensors by name that is no gradient and not empty."""
    usable = sorted(name for name, value in values.items() if value.size and not name.startswith("gradient"))
    return (usable[0], values[usable[0]]) if usable else None


def spelled(names: Sequence[str] | str | None) -> tuple[str, ...]:
    """A list of names or expressions, given as one or as text with commas."""
    if names is None:
        return ()
    return split_list(names) if isinstance(names, str) else tuple(names)


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression.

    Raises:
        ValueError: it is none.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None


def _as_statistics(value: float) -> list[float]:
    """The row of ``stats`` of a tensor with one entry."""
    nan, infinite = math.isnan(value), math.isinf(value)
    head = [1.0, float(nan), float(infinite), float(value == 0)]
    if nan or infinite:
        return [*head, math.nan, math.nan, math.nan, math.nan, 0.0, 0.0, math.nan]
    return [*head, value, value, value, 0.0, abs(value), abs(value), abs(value)]
