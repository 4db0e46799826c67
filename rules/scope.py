"""What a rule is shown of a step, where its configuration narrows it down to some tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.step import Stats, Step, TensorSet


class TensorFilter:
    """Steps with those tensors only in whose names one of some expressions is found; scalars stay.

    Args:
        patterns: regular expressions, searched for.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._narrowed: dict[TensorSet, tuple[TensorSet, NDArray[np.intp]]] = {}

    def __call__(self, step: Step) -> Step:
        """The step as the rule is shown it."""
        return replace(
            step,
            stats=None if step.stats is None else self._stats(step.stats),
            derived={key: vector for key, vector in step.derived.items() if self._wants(key[0])},
            values={name: value for name, value in step.values.items() if self._wants(name)},
        )

    def _stats(self, stats: Stats) -> Stats | None:
        found = self._narrowed.get(stats.tensors)
        if found is None:
            infos = {info.name: info for info in stats.tensors.infos if self._wants(info.name)}
            rows = [row for row, name in enumerate(stats.tensors.names) if name in infos]
            found = TensorSet(tuple(infos), infos.__getitem__), np.array(rows, dtype=np.intp)
            self._narrowed[stats.tensors] = found
        tensors, kept = found
        return Stats(tensors, stats.matrix[kept]) if len(kept) else None

    def _wants(self, name: str) -> bool:
        return any(pattern.search(name) for pattern in self._patterns)
