"""A run as smdebug's queries show it: tensors by name, their values and reductions by step and mode.

A global step is the number of optimizer steps done, as everywhere in Stepwatch; a query in mode GLOBAL goes by
it. Where a training step and evaluations carry the same one, the training step answers, or else what was
recorded last. A query in another mode goes by the count of steps within that mode.

Losses and logged scalars are tensors of one entry. Of other tensors the reductions are those that follow from
their statistics, and values are there where whole tensors were saved.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwatch.probe.collections import Collection
from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.remote import is_url, local_copy
from stepwatch.probe.store.schema import REDUCTION_QUANTITY, SMDEBUG_CONFIG
from stepwatch.probe.store.smdebug.directory import is_smdebug_directory
from stepwatch.rules.bulk import Series
from stepwatch.rules.exceptions import InvalidWorker, NoMoreData, StepUnavailable, TensorUnavailable
from stepwatch.rules.recorded import Recorded
from stepwatch.rules.reductions import REDUCTIONS, computed, derived
from stepwatch.rules.smdebug.names import TrialNames
from stepwatch.rules.step import Step
from stepwatch.rules.tensor import Array, Tensor

if TYPE_CHECKING:
    pass

_POLL_SECONDS = 0.2
_CAPTURED = re.compile(r"_output_\d+$")

Range = tuple[int | None, int | None]


class StepState(enum.Enum):
    """Whether a step can be read, under smdebug's names and numbers."""

    UNAVAILABLE = 0
    AVAILABLE = 1
    NOT_YET_AVAILABLE = 2


class Trial(TrialNames):
    """Queries of what was recorded so far.

    Attributes:
        name: its name.
        recorded: the steps; whoever makes the trial adds to them.
        tensors_read: names given to :meth:`tensor`, in order.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.recorded = Recorded()
        self.tensors_read: dict[str, None] = {}

    def refresh(self) -> None:
        """Take what was recorded meanwhile; every query does."""

    @property
    def loaded_all_steps(self) -> bool:
        """Whether no more will come."""
        return False

    def whole(self, name: str, step: Step) -> Array | None:
        """The whole tensor at a step, where it was saved."""
        return None

    # -- what a step holds of a tensor ----------------------------------------------------------------

    def read_value(self, name: str, step: Step) -> Array | None:
        """The tensor's entries, where they were saved; of a scalar its number."""
        if name in step.scalars:
            # smdebug keeps a captured loss as it is, without dimensions, and a logged number as one entry.
            number = np.float64(step.scalars[name])
            return np.array(number) if _CAPTURED.search(name) else np.array([number])
        return self.whole(name, step)

    def read_series(self, name: str, mode: ModeKeys, worker: str | None) -> Series | None:
        """The same over all steps of a mode, where that is quicker than step by step; None where it is not."""
        return None

    def arrays(self, mode: ModeKeys = ModeKeys.GLOBAL, worker: str | None = None) -> dict[str, Series]:
        """Everything that was recorded whole, by name: each tensor over all its steps as one array.

        Args:
            mode: steps are global ones in mode GLOBAL, else those counted within the mode.
            worker: whose tensors; by default of the first that has them.
        """
        found = {}
        for name in self.tensor_names(mode=mode):
            with contextlib.suppress(InvalidWorker):
                if by_step := Tensor(name, self).values(mode, worker):
                    found[name] = Series.of(by_step)
        return found

    def read_reduction(self, name: str, step: Step, reduction: str, of_magnitudes: bool) -> Any | None:
        """A reduction, or None where what was recorded does not tell."""
        saved = step.derived.get((name, f"{REDUCTION_QUANTITY}{'abs_' if of_magnitudes else ''}{reduction}"))
        if saved is not None:
            return np.float64(saved[0])
        statistics = self.recorded.statistics(step, name)
        found = None
        if statistics is not None and reduction in REDUCTIONS:
            found = derived(statistics, reduction, of_magnitudes=of_magnitudes)
            finite = statistics["numel"] and not statistics["n_nan"] + statistics["n_inf"]
            if found is not None and math.isnan(found) and finite:
                found = None  # of a tensor of which other reductions were saved
        if found is None and (whole := self.read_value(name, step)) is not None and whole.size:
            found = computed(whole, reduction, of_magnitudes=of_magnitudes)
        return None if found is None else np.float64(found)

    def read_reductions(self, name: str, step: Step) -> dict[tuple[str, bool], Any]:
        """All reductions that are known, by (name, of magnitudes)."""
        every = {
            (each, abs): self.read_reduction(name, step, each, abs) for each in REDUCTIONS for abs in (False, True)
        }
        return {key: value for key, value in every.items() if value is not None}

    def read_shape(self, name: str, step: Step) -> tuple[int, ...] | None:
        """The tensor's shape, or None where it had another number of entries than when it was first seen."""
        if (value := self.read_value(name, step)) is not None:
            return value.shape
        shape, statistics = self.recorded.first_shape(step, name), self.recorded.statistics(step, name)
        return shape if statistics is not None and statistics["numel"] == math.prod(shape) else None

    # -- tensors --------------------------------------------------------------------------------------

    def tensor_names(
        self,
        show_prefixed_tensors: bool = False,
        *,
        step: int | None = None,
        mode: ModeKeys = ModeKeys.GLOBAL,
        regex: str | Sequence[str] | None = None,
        collection: str | Collection | None = None,
    ) -> list[str]:
        """Names of tensors, sorted.

        Args:
            show_prefixed_tensors: as in smdebug; changes nothing here, where reductions are no tensors.
            step: only those recorded at this step of ``mode``.
            mode: only those recorded in this mode.
            regex: only those in which one of these expressions is found.
            collection: only members of it.

        Raises:
            ValueError: both ``regex`` and ``collection`` were given.
        """
        if regex is not None and collection is not None:
            raise ValueError("tensor_names got both regex and collection; expected one of them")
        self.refresh()
        names: Iterable[str] = self._names(step, mode)
        if regex is not None:
            patterns = [re.compile(each) for each in ([regex] if isinstance(regex, str) else regex)]
            names = [name for name in names if any(pattern.search(name) for pattern in patterns)]
        if collection is not None:
            names = self._members(names, collection if isinstance(collection, str) else collection.name)
        return sorted(names)

    def _members(self, names: Iterable[str], collection: str) -> list[str]:
        return [name for name in names if collection in self.recorded.collections_of(name)]

    def _names(self, step: int | None, mode: ModeKeys) -> set[str]:
        if step is None and mode is ModeKeys.GLOBAL:
            return self.recorded.names()
        numbers = self.recorded.numbers(mode) if step is None else [step]
        every = (found for number in numbers for found in self.recorded.find(number, mode))
        return set().union(*(self.recorded.names_at(found) for found in every))

    def has_tensor(self, name: str) -> bool:
        """Whether a tensor of that name was recorded."""
        self.refresh()
        return self.recorded.has(name)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name.

        Raises:
            TensorUnavailable: there is none.
        """
        if not self.has_tensor(name):
            raise TensorUnavailable(name)
        self.tensors_read[name] = None
        return Tensor(name, self)

    def collections(self) -> dict[str, Collection]:
        """Collections that have members, with these."""
        found: dict[str, Collection] = {}
        for name in self.tensor_names():
            for membership in self.recorded.collections_of(name):
                found.setdefault(membership, Collection(membership)).tensor_names.add(name)
        return found

    def collection(self, name: str) -> Collection:
        """The collection of that name; empty where nothing of it was recorded."""
        return self.collections().get(name) or Collection(name)

    # -- steps ----------------------------------------------------------------------------------------

    def steps(self, mode: ModeKeys = ModeKeys.GLOBAL, show_incomplete_steps: bool = False) -> list[int]:
        """Steps of the mode, ascending: global ones in mode GLOBAL, else those counted within it.

        With those, if wanted, that not all workers have recorded yet; only smdebug waits for them.
        """
        self.refresh()
        return list(self.recorded.numbers(mode))

    def modes(self) -> list[ModeKeys]:
        """Modes in which something was recorded, without GLOBAL."""
        self.refresh()
        found = self.recorded.modes()
        return [mode for mode in ModeKeys if mode in found and mode is not ModeKeys.GLOBAL]

    def mode(self, global_step: int) -> ModeKeys | None:
        """Mode of a global step, or None."""
        return self.mode_modestep(global_step)[0]

    def mode_step(self, global_step: int) -> int | None:
        """Number of a global step within its mode, or None."""
        return self.mode_modestep(global_step)[1]

    def mode_modestep(self, global_step: int) -> tuple[ModeKeys | None, int | None]:
        """Mode of a global step and its number in it, or (None, None)."""
        self.refresh()
        for step in self.recorded.find(global_step, ModeKeys.GLOBAL):
            return ModeKeys[step.mode], step.mode_step
        return None, None

    def global_step(self, mode: ModeKeys, mode_step: int) -> int | None:
        """Global step of a step of a mode, or None."""
        self.refresh()
        for step in self.recorded.find(mode_step, mode):
            return step.step
        return None

    def worker(self, rank: int) -> str:
        """Name of the worker of that rank."""
        return f"worker_{rank}"

    def workers(self) -> list[str]:
        """Names of all workers that have recorded something."""
        self.refresh()
        return [self.worker(rank) for rank in sorted(self.recorded.ranks)]

    def has_passed_step(self, step: int, mode: ModeKeys = ModeKeys.GLOBAL) -> StepState:
        """Whether the step can be read, may still come, or was passed over."""
        ended = self.loaded_all_steps  # asked first: what is read then is all there is
        known = self.steps(mode)
        if self.recorded.find(step, mode):
            return StepState.AVAILABLE
        passed = ended or (bool(known) and step < known[-1])
        return StepState.UNAVAILABLE if passed else StepState.NOT_YET_AVAILABLE

    def wait_for_steps(self, required_steps: Iterable[int], mode: ModeKeys = ModeKeys.GLOBAL) -> None:
        """Return when all these steps can be read.

        Raises:
            StepUnavailable: one was passed over.
            NoMoreData: the job ended before one.
        """
        for number in required_steps:
            while (state := self.has_passed_step(number, mode)) is StepState.NOT_YET_AVAILABLE:
                time.sleep(_POLL_SECONDS)
            if state is StepState.UNAVAILABLE:
                known = self.steps(mode)
                if not known or number > known[-1]:
                    raise NoMoreData(number, mode, known[-1] if known else None)
                raise StepUnavailable(number, mode)


def create_trial(path: str | os.PathLike[str], name: str | None = None, range_steps: Range | None = None) -> Trial:
    """Open a run, or what smdebug recorded, for queries.

    Args:
        path: the run's directory, or one that smdebug wrote or is writing; or a URL of either in an object store,
            of which a local copy is kept up to date.
        name: name of the trial; the directory's by default.
        range_steps: (first, end): only global steps in [first, end); None on a side leaves it open.

    Raises:
        TraceError: the directory is not a trace.
        ValueError: a range that holds nothing.
    """
    folder = local_copy(os.fspath(path)) if is_url(path) else Path(path)
    place = os.fspath(path).partition("?")[0] if is_url(path) else folder.resolve()
    name = name or Path(place).name
    smdebug = not (folder / "run.json").exists() and is_smdebug_directory(folder)
    trace = None if smdebug else Trace(folder)
    from stepwatch.rules.trace_trial import TraceTrial  # which builds on this module, as do smdebug's

    if trace is None or SMDEBUG_CONFIG in trace.info.config:
        from stepwatch.rules.smdebug.trial import ImportedTrial, open_trial

        return open_trial(folder, name, range_steps) if trace is None else ImportedTrial(trace, name, range_steps)
    return TraceTrial(trace, name, range_steps)
