"""A tensor of a trial: its values and reductions by step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.rules.exceptions import (
    InvalidWorker,
    ShapeUnavailableForStep,
    StepNotYetAvailable,
    StepUnavailable,
    TensorUnavailableForStep,
)
from stepwatch.rules.smdebug.names import TensorNames
from stepwatch.rules.step import Step

if TYPE_CHECKING:
    from stepwatch.rules.trial import Trial

Array: TypeAlias = NDArray[Any]


class Tensor(TensorNames):
    """A tensor of a trial; where ``worker`` is None, of the first worker that has it."""

    def __init__(self, name: str, trial: Trial) -> None:
        self.name = name
        self.trial = trial

    def steps(self, mode: ModeKeys = ModeKeys.GLOBAL, show_incomplete_steps: bool = False) -> list[int]:
        """Steps at which it was recorded, ascending."""
        self.trial.refresh()
        return [number for number in self.trial.recorded.numbers(mode) if self._holding(number, mode)]

    def prev_steps(self, step: int, n: int | None = None, mode: ModeKeys = ModeKeys.GLOBAL) -> list[int]:
        """The last ``n`` steps up to and including ``step`` at which it was recorded, ascending; all where None."""
        self.trial.refresh()
        back = (each for each in self.trial.recorded.numbers_back_from(step, mode) if self._holding(each, mode))
        return list(islice(back, n))[::-1]

    def workers(self, step_num: int, mode: ModeKeys = ModeKeys.GLOBAL) -> list[str]:
        """Workers that have recorded it at the step.

        Raises:
            StepNotYetAvailable, StepUnavailable: there is no such step.
            TensorUnavailableForStep: it was not recorded at the step.
        """
        self._at(step_num, mode, None)
        return sorted({self.trial.worker(step.rank) for step in self._holding(step_num, mode)})

    def value(self, step_num: int, mode: ModeKeys = ModeKeys.GLOBAL, worker: str | None = None) -> Array:
        """The whole tensor.

        Raises:
            StepNotYetAvailable, StepUnavailable: there is no such step.
            TensorUnavailableForStep: it was not saved whole at the step.
            InvalidWorker: the worker has not recorded it.
        """
        found = self.trial.read_value(self.name, self._at(step_num, mode, worker))
        if found is None:
            raise TensorUnavailableForStep(self.name, step_num, mode, has_reductions=True)
        return found

    def values(self, mode: ModeKeys = ModeKeys.GLOBAL, worker: str | None = None) -> dict[int, Array]:
        """Whole tensors by step, where they were saved."""
        self.trial.refresh()
        if (series := self.trial.read_series(self.name, mode, worker)) is not None:
            return series.by_step()
        every = {number: self.trial.read_value(self.name, step) for number, step in self._every(mode, worker)}
        return {number: value for number, value in every.items() if value is not None}

    def reduction_value(
        self,
        step_num: int,
        reduction_name: str,
        mode: ModeKeys = ModeKeys.GLOBAL,
        worker: str | None = None,
        abs: bool = False,
    ) -> Any:
        """A reduction, as a number of NumPy: from the statistics, or else computed from the whole tensor.

        Args:
            step_num: the step.
            reduction_name: min, max, mean, median, std, variance, sum, prod, l1 or l2; ``l1_norm`` and ``l2_norm`` too.
            mode: mode of the step.
            worker: whose tensor.
            abs: of the magnitudes of the entries.

        Raises:
            StepNotYetAvailable, StepUnavailable: there is no such step.
            TensorUnavailableForStep: the statistics do not tell, and the tensor was not saved whole.
            InvalidWorker: the worker has not recorded it.
        """
        step = self._at(step_num, mode, worker)
        found = self.trial.read_reduction(self.name, step, reduction_name.removesuffix("_norm"), abs)
        if found is None:
            what = f"{'abs ' if abs else ''}{reduction_name}"
            raise TensorUnavailableForStep(self.name, step_num, mode, has_reductions=True, what=what)
        return found

    def reduction_values(
        self, step_num: int, mode: ModeKeys = ModeKeys.GLOBAL, worker: str | None = None
    ) -> dict[tuple[str, bool], Any]:
        """All reductions that were recorded at the step, by (name, of magnitudes).

        Raises:
            StepNotYetAvailable, StepUnavailable, TensorUnavailableForStep, InvalidWorker: as for :meth:`value`.
        """
        return self.trial.read_reductions(self.name, self._at(step_num, mode, worker))

    def shape(self, step_num: int, mode: ModeKeys = ModeKeys.GLOBAL, worker: str | None = None) -> tuple[int, ...]:
        """Its shape at the step.

        Raises:
            StepNotYetAvailable, StepUnavailable: there is no such step.
            ShapeUnavailableForStep: it had another number of entries than when it was first seen.
            TensorUnavailableForStep, InvalidWorker: as for :meth:`value`.
        """
        shape = self.trial.read_shape(self.name, self._at(step_num, mode, worker))
        if shape is None:
            raise ShapeUnavailableForStep(self.name, step_num, mode)
        return shape

    def shapes(self, mode: ModeKeys = ModeKeys.GLOBAL, worker: str | None = None) -> dict[int, tuple[int, ...]]:
        """Shapes by step, where they are known."""
        every = {number: self.trial.read_shape(self.name, step) for number, step in self._every(mode, worker)}
        return {number: shape for number, shape in every.items() if shape is not None}

    def _holding(self, number: int, mode: ModeKeys) -> list[Step]:
        """Steps of that number at which it was recorded."""
        recorded = self.trial.recorded
        return [step for step in recorded.find(number, mode) if recorded.holds(step, self.name)]

    def _at(self, number: int, mode: ModeKeys, worker: str | None) -> Step:
        """Where to read it under that number."""
        self.trial.refresh()
        found = self._holding(number, mode)
        if found:
            return self._of_worker(found, worker)
        if self.trial.recorded.find(number, mode):
            raise TensorUnavailableForStep(self.name, number, mode)
        last = max(self.trial.recorded.numbers(mode), default=-1)
        if number > last and not self.trial.loaded_all_steps:
            raise StepNotYetAvailable(number, mode)
        raise StepUnavailable(number, mode)

    def _every(self, mode: ModeKeys, worker: str | None) -> Iterator[tuple[int, Step]]:
        """Steps at which it was recorded, with their numbers, ascending."""
        self.trial.refresh()
        for number in self.trial.recorded.numbers(mode):
            if found := self._holding(number, mode):
                yield number, self._of_worker(found, worker)

    def _of_worker(self, found: list[Step], worker: str | None) -> Step:
        for step in found:
            if worker is None or worker == self.trial.worker(step.rank):
                return step
        raise InvalidWorker(str(worker))
