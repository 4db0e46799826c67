"""Trials of what smdebug recorded: its directories as they are, and runs imported from them.

Queries answer as smdebug would: what was saved is given as it was saved, any other reduction is NumPy's of the whole
tensor in the tensor's own type, and norms of matrices are those of matrices.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from stepwatch.probe.collections import Collection
from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug import collection as smdebug
from stepwatch.probe.smdebug.errors import SMDebugValueError
from stepwatch.probe.store.arrow import as_array
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.schema import REDUCTION_QUANTITY, SHAPE_QUANTITY, SMDEBUG_CONFIG
from stepwatch.probe.store.smdebug.directory import IndexedStep, SMDebugDirectory, reduction_dtype
from stepwatch.rules.bulk import Series
from stepwatch.rules.exceptions import MissingCollectionFiles
from stepwatch.rules.smdebug.core.locations import IndexFileLocationUtils
from stepwatch.rules.smdebug.core.utils import serialize_tf_device
from stepwatch.rules.step import Stats, Step, TensorSet
from stepwatch.rules.tensor import Array
from stepwatch.rules.trace_trial import TraceTrial
from stepwatch.rules.trial import Range, Trial

_NUMPY_NAMES = {"variance": "var"}
_ORDERS = {"l1": 1, "l2": 2}
_WINDOW_VARIABLE, _WINDOW = "SMDEBUG_INCOMPLETE_STEP_WAIT_WINDOW", 1000
_REDUCTIONS = ("min", "max", "mean", "median", "std", "variance", "sum", "prod")


class _AsSaved(Trial):
    """Answers by what smdebug saved."""

    _described: dict[str, Collection]
    _kept: dict[str, smdebug.Collection]

    def saved_reductions(self, name: str, step: Step) -> dict[tuple[str, bool], Any]:
        """Reductions that were saved of a tensor at a step."""
        raise NotImplementedError

    def saved_shape(self, name: str, step: Step) -> tuple[int, ...] | None:
        """Shape that was saved of a tensor at a step."""
        raise NotImplementedError

    def read_value(self, name: str, step: Step) -> Array | None:
        """The whole tensor."""
        return self.whole(name, step)

    def read_reductions(self, name: str, step: Step) -> dict[tuple[str, bool], Any]:
        """Reductions that were saved."""
        return self.saved_reductions(name, step)

    def read_reduction(self, name: str, step: Step, reduction: str, of_magnitudes: bool) -> Any | None:
        """A reduction as it was saved, or else of the whole tensor.

        Raises:
            SMDebugValueError: there is no such reduction.
        """
        if reduction not in (*_REDUCTIONS, *_ORDERS):
            known = ", ".join((*_REDUCTIONS, *_ORDERS))
            raise SMDebugValueError(f"reduction {reduction!r} is unknown; expected one of {known}")
        saved = self.saved_reductions(name, step).get((reduction, of_magnitudes))
        if saved is not None:
            return saved
        whole = self.whole(name, step)
        return None if whole is None else numpy_reduction(whole, reduction, of_magnitudes)

    def read_shape(self, name: str, step: Step) -> tuple[int, ...] | None:
        """The shape, where it or the tensor was saved."""
        saved = self.saved_shape(name, step)
        if saved is None and (whole := self.whole(name, step)) is not None:
            saved = whole.shape
        return saved

    def global_step(self, mode: ModeKeys, mode_step: int) -> int | None:
        """Global step of a step of a mode, or None; in mode GLOBAL the step itself, recorded or not."""
        return mode_step if mode is ModeKeys.GLOBAL else super().global_step(mode, mode_step)

    def _members(self, names: Iterable[str], collection: str) -> list[str]:
        wanted, known = self.collection(collection), self.recorded.collections_of
        return [name for name in names if wanted.matches(name) or collection in known(name)]

    def collections(self) -> dict[str, Collection]:
        """Collections as smdebug described them, with the tensors that were found in each; they may be added to."""
        found = super().collections()
        for name in self._described:
            self.collection(name).tensor_names |= found[name].tensor_names if name in found else set()
        return dict(self._kept)

    def collection(self, name: str) -> smdebug.Collection:
        """The collection of that name, made where there is none."""
        if name not in self._kept:
            described = self._described.get(name) or Collection(name)
            self._kept[name] = smdebug.Collection(name, list(described.include_regex), set(described.tensor_names))
        return self._kept[name]


class SMDebugTrial(_AsSaved):
    """A trial of a directory that smdebug wrote, or is writing.

    Args:
        directory: the directory.
        name: its name.
        range_steps: (first, end) global steps.

    Attributes:
        path: the directory.
    """

    def __init__(self, directory: SMDebugDirectory, name: str, range_steps: Range | None = None) -> None:
        super().__init__(name)
        self.path = str(directory.path)
        self._range = _checked(range_steps)
        self._directory = directory
        self._ended = False
        self._described = {}
        self._kept = {}
        self._sets: dict[tuple[str, ...], TensorSet] = {}
        self._waiting: dict[int, dict[str, IndexedStep]] = {}
        self._complete: dict[tuple[int, str], IndexedStep] = {}
        self._workers: list[str] = []
        self._last_complete = self._last_full = -1
        self._window = int(os.environ.get(_WINDOW_VARIABLE, _WINDOW))
        self.refresh()

    def refresh(self) -> None:
        """Take what was saved meanwhile: steps that all workers have saved, or that no worker will any more.

        Those are, as in smdebug, steps before one that all have saved, all steps of a job that has ended, and the
        oldest of more incomplete ones than ``SMDEBUG_INCOMPLETE_STEP_WAIT_WINDOW`` says.
        """
        if self._ended or not self.dynamic_refresh:
            return
        ended = self._directory.ended
        if not self._described:
            self._described = self._directory.collections()
        first, end = self._range
        for indexed in self._directory.poll():
            if (first is None or indexed.step >= first) and (end is None or indexed.step < end):
                self._waiting.setdefault(indexed.step, {})[indexed.worker] = indexed
        expected = self._directory.workers()
        full = [n for n, parts in self._waiting.items() if expected and len(parts) >= expected]
        self._last_full = max([self._last_full, *full])
        self._last_complete = max([self._last_complete, *(self._waiting if ended else full)])
        while self._window > 1 and self._seen - (self._last_complete + 1) > self._window:
            self._last_full = self._last_complete = self._last_complete + self._window // 2
        for number in sorted(self._waiting):
            if number <= self._last_complete:
                for worker, indexed in sorted(self._waiting.pop(number).items()):
                    self._add(worker, indexed)
        self._ended = ended

    def _add(self, worker: str, indexed: IndexedStep) -> None:
        if worker not in self._workers:
            self._workers.append(worker)
        names = tuple(indexed.names())
        tensors = self._sets.get(names)
        if tensors is None:
            tensors = self._sets[names] = TensorSet(names, self._describe)
        stats = Stats(tensors, np.empty((len(names), 0)))
        rank = self._workers.index(worker)
        self.recorded.add(Step(rank, indexed.step, indexed.mode, indexed.mode_step, 0, stats=stats))
        self._complete[indexed.step, worker] = indexed

    def _describe(self, name: str) -> TensorInfo:
        members = sorted(each.name for each in self._described.values() if each.matches(name))
        return TensorInfo(name, collections=tuple(members))

    @property
    def loaded_all_steps(self) -> bool:
        """Whether the job has ended and all was read."""
        self.refresh()
        return self._ended

    @property
    def _seen(self) -> int:
        """How many steps there are, complete or not."""
        return len({*self._waiting, *self.recorded.numbers(ModeKeys.GLOBAL)})

    @property
    def last_complete_step(self) -> int:
        """The last global step that all workers have saved, or that will not change any more; -1 without any."""
        self.refresh()
        return self._last_complete

    @property
    def last_index_token(self) -> str | None:
        """Path of the index file of the last worker at the last step that all workers have saved; None without one."""
        self.refresh()
        workers = self.workers()
        if self._last_full < 0 or not workers:
            return None
        return IndexFileLocationUtils.get_index_key_for_step(
            self.path, self._last_full, serialize_tf_device(workers[-1])
        )

    @property
    def num_workers(self) -> int:
        """How many workers write, as they say; 0 until one has said it."""
        return self._directory.workers() or 0

    def worker(self, rank: int) -> str:
        """Name of the worker of that rank."""
        return self._workers[rank]

    def workers(self) -> list[str]:
        """Names of the workers that have described their collections, or else have saved something; sorted."""
        self.refresh()
        return sorted(self._directory.worker_names() or self._workers)

    def steps(self, mode: ModeKeys = ModeKeys.GLOBAL, show_incomplete_steps: bool = False) -> list[int]:
        """Steps of the mode, ascending; with those that not all workers have saved yet, if wanted."""
        found = super().steps(mode)
        if show_incomplete_steps:
            every = (indexed for parts in self._waiting.values() for indexed in parts.values())
            waiting = {e.step if mode is ModeKeys.GLOBAL else e.mode_step for e in every if _is_of(e, mode)}
            found = sorted({*found, *waiting})
        return found

    def _indexed(self, step: Step) -> IndexedStep:
        return self._complete[step.step, self._workers[step.rank]]

    def whole(self, name: str, step: Step) -> Array | None:
        """The whole tensor, read from its event file at each call."""
        indexed = self._indexed(step)
        place = indexed.tensors.get(name)
        return None if place is None else self._read(indexed, place)

    def saved_reductions(self, name: str, step: Step) -> dict[tuple[str, bool], Any]:
        """Reductions that were saved of a tensor at a step."""
        indexed = self._indexed(step)
        places = indexed.reductions.get(name, {})
        return {key: value for key, place in places.items() if (value := self._read(indexed, place)) is not None}

    def saved_shape(self, name: str, step: Step) -> tuple[int, ...] | None:
        """Shape that was saved of a tensor at a step."""
        return self._indexed(step).shapes.get(name)

    def _read(self, indexed: IndexedStep, place: tuple[int, int]) -> Any | None:
        try:
            return self._directory.read(indexed, place).value
        except FileNotFoundError:
            return None


class ImportedTrial(_AsSaved, TraceTrial):
    """A trial of a run that was imported from smdebug, or recorded by its hook as we provide it.

    Steps are those at which something was saved. Arguments are those of :class:`TraceTrial`.
    """

    _statistics = False  # only what was saved answers

    def __init__(self, trace: Trace, name: str, range_steps: Range | None = None) -> None:
        super().__init__(trace, name, range_steps)
        known = trace.info.config[SMDEBUG_CONFIG]
        self._workers = known["workers"]
        self._kept = {}
        self._described = {
            each: Collection(each, list(entry["include_regex"]), set(entry["tensor_names"]))
            for each, entry in known["collections"].items()
        }
        self._spelled: set[str] | None = None
        self._infos: dict[str, TensorInfo] = {}
        self._sets: dict[tuple[str, ...], TensorSet] = {}

    def refresh(self) -> None:
        """Take what was recorded meanwhile; of a hook of this process every step that has ended, as in smdebug."""
        if not self._complete and self.dynamic_refresh:
            _write_out(self.trace.path)
        super().refresh()

    def _take(self, steps: Iterable[Step]) -> None:
        super()._take(saved for step in steps if (saved := self._as_saved(step)) is not None)

    def _known_names(self) -> set[str] | None:
        if not self._unread:
            return None
        if self._spelled is None:
            self._spelled = self._names_in_tables()
        return self._spelled or None

    def _names_in_tables(self) -> set[str]:
        """Names of all of which something was saved; none where only the steps tell, which ones count."""
        every_step = (self._first, self._end) == (None, None)
        if not every_step or not all(self.trace.table("steps", columns=["saved"])["saved"].to_pylist()):
            return set()
        stats = self.trace.table("stats", columns=["name", "numel"])
        if not as_array(stats["numel"]).all():  # what has no entries is part of no step
            stats = stats.filter(pc.field("numel") > 0)
        found = set(stats["name"].unique().to_pylist())
        derived = self.trace.table("derived", columns=["name", "quantity"])
        pairs = set(zip(derived["name"].to_pylist(), derived["quantity"].to_pylist(), strict=True))
        return found | {name for name, quantity in pairs if _is_saved(quantity)}

    def _as_saved(self, step: Step) -> Step | None:
        """The step with a row for every tensor of which something was saved, and nothing else; None without any."""
        known = () if step.stats is None else step.stats.tensors.names
        names = tuple(dict.fromkeys([*known, *(name for name, quantity in step.derived if _is_saved(quantity))]))
        if not names:
            return None
        tensors = self._sets.get(names)
        if tensors is None:
            self._infos = self.trace.tensors()
            tensors = self._sets[names] = TensorSet(names, lambda name: self._infos.get(name, TensorInfo(name)))
        return replace(step, stats=Stats(tensors, np.empty((len(names), 0))), scalars={})

    def _scalar_series(self, mode: ModeKeys, worker: str | None) -> dict[str, Series]:
        return {}  # they are among the whole tensors

    def worker(self, rank: int) -> str:
        """Name of the worker of that rank."""
        return super().worker(rank) if self._workers is None else str(self._workers[rank])

    def saved_reductions(self, name: str, step: Step) -> dict[tuple[str, bool], Any]:
        """Reductions that were saved of a tensor at a step."""
        found = {}
        dtype = reduction_dtype(self._infos[name].dtype)
        for reduction in (*_REDUCTIONS, *_ORDERS):
            for of_magnitudes in (False, True):
                quantity = f"{REDUCTION_QUANTITY}{'abs_' if of_magnitudes else ''}{reduction}"
                if (value := step.derived.get((name, quantity))) is not None:
                    found[reduction, of_magnitudes] = value[0].astype(dtype)
        return found

    def saved_shape(self, name: str, step: Step) -> tuple[int, ...] | None:
        """Shape that was saved of a tensor at a step."""
        shape = step.derived.get((name, SHAPE_QUANTITY))
        return None if shape is None else tuple(int(size) for size in shape)


def open_trial(path: Path, name: str, range_steps: Range | None) -> Trial:
    """A trial of a directory that smdebug wrote.

    Raises:
        MissingCollectionFiles: the job ended without describing its collections.
        TraceError: it cannot be read.
        ValueError: a range that holds nothing.
    """
    directory = SMDebugDirectory(path)
    if directory.ended and directory.workers() is None:
        raise MissingCollectionFiles(f"{path}: the job ended and left no description of its collections")
    return SMDebugTrial(directory, name, range_steps)


def _write_out(path: Path) -> None:
    hooks = sys.modules.get("stepwatch.probe.smdebug.hook")  # a hook is there only where its module is, with torch
    hook = hooks.get_hook() if hooks else None
    if hook is not None and Path(hook.out_dir).expanduser().absolute() == path.absolute():
        hook.flush()


def _is_saved(quantity: str) -> bool:
    return quantity == SHAPE_QUANTITY or quantity.startswith(REDUCTION_QUANTITY)


def _is_of(indexed: IndexedStep, mode: ModeKeys) -> bool:
    return mode is ModeKeys.GLOBAL or indexed.mode == mode.name


def _checked(range_steps: Range | None) -> Range:
    first, end = range_steps or (None, None)
    if first is not None and end is not None and first >= end:
        raise ValueError(f"range_steps is {range_steps}; expected the first step below the end")
    return first, end


def numpy_reduction(array: Array, name: str, of_magnitudes: bool) -> Any:
    """NumPy's reduction in the tensor's own type; norms of more than two dimensions are of all entries."""
    entries = np.abs(array) if of_magnitudes else array
    with np.errstate(all="ignore"):
        if name in _ORDERS:
            flat = np.ravel(entries) if array.ndim not in (1, 2) else entries
            return np.linalg.norm(flat, _ORDERS[name])
        return getattr(np, _NUMPY_NAMES.get(name, name))(entries)
