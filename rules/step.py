"""What a rule sees of one step of one rank: columns of statistics, scalars, derived quantities."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS

_LOSS_NAME = re.compile(r"(?:^|[^a-z])loss(?:es)?(?:$|[^a-z])", re.IGNORECASE)
_CAPTURED_LOSS_NAME = re.compile(r"[Ll]oss_(?!input).*output")
_EVAL_NAME = re.compile(r"(?:^|[^a-z])(?:val|valid|validation|eval|evaluation|dev|test)(?:$|[^a-z])", re.IGNORECASE)


class TensorSet:
    """The tensors that one saved step holds, interned: steps that hold the same tensors share one.

    Rules keep vectors of state aligned with it and ask for rows by collection; the answers are cached, so
    that a step costs no work per tensor.
    """

    def __init__(self, names: Sequence[str], describe: Callable[[str], TensorInfo]) -> None:
        self.names = tuple(names)
        self.infos = tuple(describe(name) for name in self.names)
        self._rows: dict[str, NDArray[np.intp]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, collection: str) -> NDArray[np.intp]:
        """Indices of the members of ``collection``, in recorded order; empty where there is none."""
        found = self._rows.get(collection)
        if found is None:
            members = [i for i, info in enumerate(self.infos) if collection in info.collections]
            found = self._rows[collection] = np.array(members, dtype=np.intp)
        return found


class StatColumns:
    """Rows of statistics, [tensors, columns]; the columns are attributes named as in the trace, float64 vectors."""

    __slots__ = ("matrix",)

    numel: NDArray[np.float64]
    n_nan: NDArray[np.float64]
    n_inf: NDArray[np.float64]
    n_zero: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    l1: NDArray[np.float64]
    l2: NDArray[np.float64]
    abs_max: NDArray[np.float64]

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self.matrix = matrix


def _column(index: int) -> property:
    return property(lambda self: self.matrix[:, index])


for _index, _name in enumerate(STAT_COLUMNS):
    setattr(StatColumns, _name, _column(_index))


class Stats(StatColumns):
    """Statistics of the tensors of one saved step, aligned with ``tensors``.

    ``stats.mean[stats.tensors.rows("gradients")]`` has the means of its gradients.
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: TensorSet, matrix: NDArray[np.float64]) -> None:
        super().__init__(matrix)
        self.tensors = tensors


@dataclass(slots=True)
class Step:
    """One step of one rank, as a rule sees it.

    Attributes:
        rank: the rank that recorded it.
        step: global step (optimizer steps done before it); evaluations carry the step they follow.
        mode: ``"TRAIN"``, ``"EVAL"``, ``"PREDICT"`` or ``"GLOBAL"``.
        mode_step: count within the mode.
        time_ns: wall clock at its start.
        stats: statistics, or None where the step was not saved.
        scalars: every captured loss and logged scalar of the step, in order; the last of a name counts.
        derived: (tensor, quantity) -> float64 vector.
        timing: nanoseconds by column of the ``steps`` table.
        saved: whether the step was due to be saved; losses and logged scalars are there at every step.
        values: whole tensors by name, where they were saved and a rule looks at them.
        shared: what the rules that judge this rank remember together; None where they are not fed by an engine.
        training: whether this is a training step (a job that never names its mode is taken to train).
    """

    rank: int
    step: int
    mode: str
    mode_step: int
    time_ns: int
    stats: Stats | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    derived: Mapping[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
    timing: Mapping[str, int] = field(default_factory=dict)
    saved: bool = True
    values: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    shared: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    training: bool = field(init=False, repr=False, compare=False)
    _train_losses: dict[str, float] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.training = self.mode == "TRAIN" or self.mode == "GLOBAL"  # every rule asks

    def train_losses(self) -> dict[str, float]:
        """Training losses of this step by series name."""
        if self._train_losses is None:
            scalars = self.scalars.items() if self.training else ()
            self._train_losses = {name: value for name, value in scalars if is_loss(name) and not is_eval_name(name)}
        return self._train_losses

    def eval_losses(self) -> dict[str, float]:
        """Evaluation losses by series name: those of EVAL mode, and those whose name says so."""
        if self.mode == "EVAL":
            return {name: value for name, value in self.scalars.items() if is_loss(name)}
        return {name: value for name, value in self.scalars.items() if is_loss(name) and is_eval_name(name)}


@lru_cache(maxsize=4096)
def is_loss(name: str) -> bool:
    """Whether a scalar's name says that it is a loss: captured ones (``CrossEntropyLoss_output_0``) and
    logged ones that have the word (``loss``, ``train/loss``, ``val_loss``)."""
    return not name.startswith("seconds/") and (is_captured_loss(name) or bool(_LOSS_NAME.search(name)))


@lru_cache(maxsize=4096)
def is_captured_loss(name: str) -> bool:
    """Whether a scalar has the name of a loss that the hook captured."""
    return bool(_CAPTURED_LOSS_NAME.search(name))


@lru_cache(maxsize=4096)
def is_eval_name(name: str) -> bool:
    """Whether a scalar's name says that it was measured on held-out data (``val_loss``, ``eval/acc``)."""
    return bool(_EVAL_NAME.search(name))


class StepBuilder:
    """Makes :class:`Step` objects from records, interning their tensor sets."""

    def __init__(self, rank: int, describe: Callable[[str], TensorInfo]) -> None:
        self.rank = rank
        self._describe = describe
        self._sets: dict[tuple[str, ...], TensorSet] = {}

    def tensor_set(self, names: tuple[str, ...]) -> TensorSet:
        """The interned set of these tensors."""
        found = self._sets.get(names)
        if found is None:
            found = self._sets[names] = TensorSet(names, self._describe)
        return found

    @property
    def state(self) -> dict[tuple[str, ...], TensorSet]:
        """The sets that were made, by their tensors; rules may hold them."""
        return self._sets

    def go_on_from(self, state: dict[tuple[str, ...], TensorSet]) -> None:
        """Know the sets that another has made."""
        self._sets = state

    def from_record(self, record: StepRecord) -> Step:
        """The step of a resolved record."""
        stats = None
        if record.stats is not None and len(record.names):
            names, matrix = record.names, record.stats
            if not matrix[:, 0].all():  # as where rows are read from disk, what has no entries is left out
                some = matrix[:, 0] > 0
                names, matrix = tuple(compress(names, some)), matrix[some]
            stats = Stats(self.tensor_set(names), matrix)
        return Step(
            rank=self.rank,
            step=record.step,
            mode=record.mode,
            mode_step=record.mode_step,
            time_ns=record.time_ns,
            stats=stats,
            scalars=dict(record.scalars),
            derived={(name, quantity): value for name, quantity, value in record.derived},
            timing=record.timing,
            saved=record.saved,
            values=dict(record.values),
        )
