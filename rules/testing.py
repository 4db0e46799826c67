"""Made-up runs of a few lines, to test rules with: what they see, without a training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.collections import ACTIVATION_TYPES, collections_of_module_tensor
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.smdebug.importing import statistics
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.finding import Coverage, Finding
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step, StepBuilder

Values = float | Sequence[float] | NDArray[Any] | Callable[[int], Any]
"""A number for every step, one per step, or a function of the step."""

_SECOND = 1_000_000_000


@dataclass
class Judgement:
    """What a rule says of a run.

    Attributes:
        findings: what it found, in order.
        coverage: what it looked at, and what was missing.
    """

    findings: list[Finding]
    coverage: Coverage

    @property
    def steps(self) -> list[int]:
        """The steps at which it decided, one per finding."""
        return [finding.last_step for finding in self.findings]


class SyntheticRun:
    """A training run of one rank, described by what it recorded.

    Every method returns the run, so that descriptions chain. Values are given as one number for all steps, as one
    per step (their number is that of the steps where ``steps`` is not given), or as a function of the step. A
    tensor's value at a step is the tensor itself, or the standard deviation of one with normally distributed entries
    around 0; NaN and infinity stand for a tensor that is nothing else::

        run = SyntheticRun().loss([2.3, 2.2, float("nan")]).gradients({"fc1.weight": 1e-3, "fc2.weight": [1, 2, 3]})
        assert run.judge(MyRule(limit=2)).steps == [2]

    Args:
        steps: number of training steps.
        save_every: every how many steps tensors and derived quantities are saved.
    """

    def __init__(self, steps: int | None = None, *, save_every: int = 1) -> None:
        self._count = steps
        self._save_every = save_every
        self._scalars: dict[str, Values] = {}
        self._tensors: dict[str, tuple[TensorInfo, Values]] = {}
        self._derived: dict[tuple[str, str], Values] = {}
        self._evaluate_every = 0
        self._evaluations: dict[str, Values] = {}

    def loss(self, values: Values, *, name: str = "CrossEntropyLoss_output_0") -> SyntheticRun:
        """The training loss, as the hook names a captured one."""
        return self.scalar(name, values)

    def learning_rate(self, values: Values) -> SyntheticRun:
        """The learning rate of the first parameter group."""
        return self.scalar("learning_rate", values)

    def scalar(self, name: str, values: Values) -> SyntheticRun:
        """A scalar of training steps, as ``hook.log`` records it."""
        self._scalars[name] = values
        return self

    def evaluations(self, every: int, loss: Values, *, name: str = "CrossEntropyLoss_output_0") -> SyntheticRun:
        """An evaluation after every so many training steps; values are per evaluation."""
        self._evaluate_every = every
        self._evaluations[name] = loss
        return self

    def weights(self, tensors: Mapping[str, Values], *, shape: Sequence[int] = (16, 16)) -> SyntheticRun:
        """Weights by parameter name, in the order in which they run; ``shape`` where tensors are not given whole."""
        return self._add(tensors, shape, "{}", ("weights",))

    def biases(self, tensors: Mapping[str, Values], *, shape: Sequence[int] = (16,)) -> SyntheticRun:
        """Biases by parameter name."""
        return self._add(tensors, shape, "{}", ("biases",))

    def gradients(self, tensors: Mapping[str, Values], *, shape: Sequence[int] = (16, 16)) -> SyntheticRun:
        """Gradients by the name of their parameter."""
        return self._add(tensors, shape, "gradient/{}", ("gradients",))

    def activations(
        self, tensors: Mapping[str, Values], *, module_type: str = "ReLU", shape: Sequence[int] = (8, 16)
    ) -> SyntheticRun:
        """Outputs of modules by the name of the module, all of one type."""
        collections = tuple(collections_of_module_tensor(module_type, "output"))
        if module_type in ACTIVATION_TYPES:
            collections = ("activations", *collections)
        return self._add(tensors, shape, "{}_output_0", tuple(dict.fromkeys(collections)), module_type)

    def derived(self, tensor: str, quantity: str, values: Values) -> SyntheticRun:
        """A derived quantity; the values are vectors."""
        self._derived[tensor, quantity] = values
        return self

    def steps(self) -> Iterator[Step]:
        """The steps, as a rule is shown them.

        Raises:
            ValueError: values that do not fit together.
        """
        builder = StepBuilder(0, lambda name: self._tensors[name][0])
        return map(builder.from_record, self._records())

    def judge(self, rule: Rule) -> Judgement:
        """Show every step to a rule; what the rule raises is raised here.

        Raises:
            ValueError: values that do not fit together.
        """
        findings = [finding for step in self.steps() for finding in rule.observe(step) or ()]
        return Judgement([*findings, *(rule.conclude() or ())], rule.coverage())

    def write(self, run_dir: str | os.PathLike[str]) -> Path:
        """Write it as a trace, for commands and for :func:`stepwatch.rules.replay.analyze`; returns the directory.

        Raises:
            TraceError: the directory cannot be written.
            ValueError: values that do not fit together.
        """
        records = self._records()
        writer = TraceWriter(run_dir)
        for info, _ in self._tensors.values():
            writer.describe(info)
        for record in records:
            if not writer.submit(record):
                writer.flush()
                writer.submit(record)
        writer.close("finished", last_step=self._length() - 1)
        return Path(run_dir)

    def _add(
        self,
        tensors: Mapping[str, Values],
        shape: Sequence[int],
        spelled: str,
        collections: tuple[str, ...],
        module_type: str = "Linear",
    ) -> SyntheticRun:
        for name, values in tensors.items():
            module = name.rpartition(".")[0] if "{}_output" not in spelled else name
            order = next((i.order for i, _ in self._tensors.values() if i.module == module), len(self._tensors))
            size = np.shape(_at(name, values, 0)) or tuple(shape)
            info = TensorInfo(spelled.format(name), size, "float32", collections, module, module_type, order)
            self._tensors[info.name] = info, values
        return self

    def _length(self) -> int:
        if self._count is not None:
            return self._count
        every = [*self._scalars.values(), *(values for _, values in self._tensors.values()), *self._derived.values()]
        counts = [len(values) for values in every if isinstance(values, Sequence | np.ndarray)]
        if not counts:
            raise ValueError("the run has no length; give SyntheticRun the number of steps, or one value per step")
        return max(counts)

    def _records(self) -> list[StepRecord]:
        length = self._length()
        saved = range(0, length, self._save_every)
        matrices = {name: _statistics(name, info, values, saved) for name, (info, values) in self._tensors.items()}
        stacked = np.stack(list(matrices.values()), axis=1) if matrices else None
        names = tuple(matrices)
        records = []
        for step in range(length):
            record = StepRecord(step, "TRAIN", step, step * _SECOND, saved=step in saved)
            record.scalars = [(name, float(_at(name, values, step))) for name, values in self._scalars.items()]
            if record.saved and stacked is not None:
                record.names, record.stats = names, stacked[step // self._save_every]
            if record.saved:
                record.derived = [
                    (*key, np.asarray(_at("/".join(key), values, step), dtype=np.float64))
                    for key, values in self._derived.items()
                ]
            records.append(record)
            done = step + 1
            if self._evaluate_every and done % self._evaluate_every == 0:
                number = done // self._evaluate_every - 1
                scalars = [(name, float(_at(name, values, number))) for name, values in self._evaluations.items()]
                records.append(StepRecord(done, "EVAL", number, step * _SECOND, scalars=scalars))
        return records


def _at(name: str, values: Values, step: int) -> Any:
    if callable(values):
        return values(step)
    if not isinstance(values, Sequence | np.ndarray):
        return values
    if step >= len(values):
        raise ValueError(f"{name} has {len(values)} values; expected one for each step, and for step {step} too")
    return values[step]


def _statistics(name: str, info: TensorInfo, values: Values, steps: range) -> NDArray[np.float64]:
    """Statistics at these steps: float64 [steps, columns]."""
    size = int(np.prod(info.shape))
    quantile = NormalDist().inv_cdf
    normal = np.array([quantile((at + 0.5) / size) for at in range(size)])
    rows = []
    for step in steps:
        value = np.asarray(_at(name, values, step), dtype=np.float64)
        rows.append(value.ravel() if value.ndim else value * normal if np.isfinite(value) else np.full(size, value))
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"{name} has tensors of different sizes; expected one size at all steps")
    return statistics(np.stack(rows)) if rows else np.empty((0, len(STAT_COLUMNS)))
