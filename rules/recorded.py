"""Steps of a run in memory, found by number and mode."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.rules.step import Step, TensorSet, is_loss


class Recorded:
    """What was recorded of a run so far: 88 bytes per tensor and step, and no work per tensor.

    A step is found by its number in a mode: in mode GLOBAL its global step, else its count within the mode.
    """

    def __init__(self) -> None:
        self._steps: dict[ModeKeys, dict[int, list[Step]]] = {}
        self._sorted: dict[ModeKeys, list[int]] = {}
        self._rows: dict[TensorSet, dict[str, int]] = {}
        self._scalars: set[str] = set()
        self.ranks: set[int] = set()

    def add(self, step: Step) -> None:
        """Take a step, in recorded order."""
        for mode in dict.fromkeys((ModeKeys.GLOBAL, ModeKeys[step.mode])):
            number = step.step if mode is ModeKeys.GLOBAL else step.mode_step
            self._steps.setdefault(mode, {}).setdefault(number, []).append(step)
            self._sorted.pop(mode, None)
        self.ranks.add(step.rank)
        self._scalars.update(step.scalars)
        if step.stats is not None and step.stats.tensors not in self._rows:
            self._rows[step.stats.tensors] = {name: row for row, name in enumerate(step.stats.tensors.names)}

    def forget(self, rank: int) -> None:
        """Drop what a rank recorded: it is replaced."""
        for mode, by_number in self._steps.items():
            left = {number: [s for s in steps if s.rank != rank] for number, steps in by_number.items()}
            self._steps[mode] = {number: steps for number, steps in left.items() if steps}
        self._sorted.clear()
        self.ranks.discard(rank)

    def numbers(self, mode: ModeKeys) -> list[int]:
        """Numbers of the mode's steps, ascending."""
        found = self._sorted.get(mode)
        if found is None:
            found = self._sorted[mode] = sorted(self._steps.get(mode, ()))
        return found

    def numbers_back_from(self, number: int, mode: ModeKeys) -> Iterator[int]:
        """Numbers of the mode's steps up to this one, descending."""
        numbers = self.numbers(mode)
        return reversed(numbers[: bisect_right(numbers, number)])

    def find(self, number: int, mode: ModeKeys) -> list[Step]:
        """Steps of that number: training steps first, then the lower rank, then what was recorded last."""
        found = self._steps.get(mode, {}).get(number, [])
        if len(found) < 2:
            return found
        return sorted(reversed(found), key=lambda step: (not step.training, step.rank))

    def modes(self) -> set[ModeKeys]:
        """Modes in which something was recorded."""
        return {mode for mode, steps in self._steps.items() if steps}

    # -- tensors --------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether a tensor or scalar of that name was recorded."""
        return name in self._scalars or any(name in rows for rows in self._rows.values())

    def names(self) -> set[str]:
        """Names of all tensors and scalars."""
        return self._scalars.union(*self._rows.values())

    def names_at(self, step: Step) -> set[str]:
        """Names of the tensors and scalars of a step."""
        return set(step.scalars).union(self._rows[step.stats.tensors] if step.stats is not None else ())

    def holds(self, step: Step, name: str) -> bool:
        """Whether the tensor or scalar was recorded at the step."""
        return name in step.scalars or (step.stats is not None and name in self._rows[step.stats.tensors])

    def statistics(self, step: Step, name: str) -> dict[str, float] | None:
        """Columns of the tensor's statistics at the step."""
        if step.stats is None or (row := self._rows[step.stats.tensors].get(name)) is None:
            return None
        return dict(zip(STAT_COLUMNS, step.stats.matrix[row].tolist(), strict=True))

    def first_shape(self, step: Step, name: str) -> tuple[int, ...]:
        """The shape that the tensor had when it was first seen."""
        assert step.stats is not None
        return step.stats.tensors.infos[self._rows[step.stats.tensors][name]].shape

    def collections_of(self, name: str) -> tuple[str, ...]:
        """Collections of a tensor; logged scalars are losses or metrics by name."""
        for tensors, rows in self._rows.items():
            if name in rows:
                return tensors.infos[rows[name]].collections
        return ("losses",) if is_loss(name) else ("metrics",)
