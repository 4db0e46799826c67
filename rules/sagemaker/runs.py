"""A run against another, and a run that stands still."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.remote import is_url, local_copy
from stepwatch.rules.finding import Finding
from stepwatch.rules.sagemaker.base import SageMakerRule, and_others, at_least
from stepwatch.rules.sagemaker.selection import Chosen, Selection
from stepwatch.rules.step import Step

_RTOL, _ATOL = 1e-5, 1e-8
_ROUNDING = 1e-6
"""Relative error that statistics may have: sums are partly in single precision."""


class SimilarAcrossRuns(SageMakerRule):
    """Tensors differ from those of another run at the same step: the two are not the same computation.

    Despite its name it fires where they differ. A step is held against the step of the other run with the same
    global step, mode and number within it, by the tensors that both have. How close is close is not said;
    NumPy's defaults are taken: |a - b| <= 1e-8 + 1e-5 |b|, and shapes must be equal. Where one of the two was
    recorded as statistics, tensors differ when these are further apart than close tensors could have them; what
    statistics cannot see passes.

    Args:
        other_trials: directory of the other run, which has ended, or its place in an object store (``s3://...``).
        collection_names: collections to look at.
        tensor_regex: regular expressions over names of tensors to look at; all tensors where neither is given.
    """

    whole_tensors = True

    def __init__(
        self,
        *,
        other_trials: tuple[str, ...] | None = None,
        collection_names: tuple[str, ...] | None = None,
        tensor_regex: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        others = (other_trials,) if isinstance(other_trials, str) else tuple(other_trials or ())
        if len(others) > 1:
            raise ValueError(f"other_trials names {len(others)} runs; expected one")
        try:
            self._other = _opened(others[0]) if others else None
        except TraceError as error:
            raise ValueError(f"other_trials: {error}") from None
        if self._other is None:
            self.lacks("other_trials was not given: the run to compare with")
        self._selection = Selection(collection_names, tensor_regex, everything=True)
        self._steps_of_other: Iterator[Step] | None = None
        self._waiting: dict[tuple[int, str, int], Step] = {}
        self._reached = -1
        self.nothing = f"the other run has no step with {self._selection} in common"

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        other = self._find(step) if self._other is not None else None
        if other is None:
            return None
        here, there = self._selection.of(step), self._selection.of(other)
        rows = {name: row for row, name in enumerate(there.names)}
        common = [(row, rows[name]) for row, name in enumerate(here.names) if name in rows]
        if not common:
            return None
        self.looked_at(step, len(common))
        names = [here.names[row] for row, _ in common]
        mine = Chosen(tuple(names), here.matrix[[row for row, _ in common]])
        theirs = Chosen(tuple(names), there.matrix[[row for _, row in common]])
        differ = _apart(mine, theirs)
        whole, other_whole = self._selection.values(step), self._selection.values(other)
        for row, name in enumerate(names):
            if name in whole and name in other_whole:
                differ[row] = not _close(whole[name], other_whole[name])
        hit = [names[row] for row in np.flatnonzero(differ)]
        if not hit:
            return None
        row = names.index(hit[0])
        distance = float(abs(mine.mean[row] - theirs.mean[row]))
        return self.fire(
            step,
            hit,
            [distance],
            threshold=0,
            message=f"{hit[0]} differs from that of the other run at step {step.step}, mean {mine.mean[row]:.6g} "
            f"instead of {theirs.mean[row]:.6g}{and_others(hit, len(names))}",
            suggestion="look for another seed, data order or configuration, or for operations that are not "
            "deterministic",
            unit="difference of means",
        )

    def _find(self, step: Step) -> Step | None:
        """The same step of the other run, read no further than needed."""
        from stepwatch.rules.replay import StepStream  # which needs the catalogue, and that this module

        if self._steps_of_other is None:
            assert self._other is not None
            stream = StepStream(self._other, step.rank, whole_tensors=True)
            self._steps_of_other = _all_of(stream)
        while self._reached <= step.step and (next_step := next(self._steps_of_other, None)) is not None:
            self._reached = next_step.step
            if next_step.step >= step.step:
                self._waiting[next_step.step, next_step.mode, next_step.mode_step] = next_step
        found = self._waiting.pop((step.step, step.mode, step.mode_step), None)
        for key in [key for key in self._waiting if key[0] < step.step]:
            del self._waiting[key]
        return found


def _all_of(stream: Any) -> Iterator[Step]:
    yield from stream.poll()
    yield from stream.drain()


def _close(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=_RTOL, atol=_ATOL)


def _apart(one: Chosen, other: Chosen) -> NDArray[np.bool_]:
    """Of which tensors the statistics are further apart than those of two close tensors can be."""
    count, root = other.numel, np.sqrt(np.maximum(other.numel, 1))
    entry = _ATOL + _RTOL * other.abs_max
    total = _ATOL * count + _RTOL * other.l1
    norm = _ATOL * root + _RTOL * other.l2
    limits = {
        "min": entry,
        "max": entry,
        "abs_max": entry,
        "l1": total,
        "mean": total / np.maximum(count, 1),
        "l2": norm,
        "std": norm / root,
    }
    apart = (one.numel != other.numel) | (one.n_nan != other.n_nan) | (one.n_inf != other.n_inf) | (other.n_nan > 0)
    for column, limit in limits.items():
        size = np.maximum(other.l1 / np.maximum(count, 1), np.abs(getattr(other, column)))
        apart |= np.abs(getattr(one, column) - getattr(other, column)) > limit + _ROUNDING * size
    return np.asarray(apart)


class StalledTrainingRule(SageMakerRule):
    """Nothing was recorded for a long time.

    Wall clock, not steps: fires where ``threshold`` seconds pass between one recorded step and the next, or, while
    a live run is watched, after the latest one. It counts from the first step. Afterwards the gap before the
    end of a run that never went on is not seen: nothing says that it was waited for.

    Args:
        threshold: seconds.
        stop_training_on_fire: ``stepwatch watch`` stops the job when it fires, as with ``--stop``.
        training_job_name_prefix: begin of the name of the job to stop; unused here, where the run says which job
            it is.
    """

    nothing = "no step was recorded"

    def __init__(
        self,
        *,
        threshold: int = 1800,
        stop_training_on_fire: bool = False,
        training_job_name_prefix: str | None = None,
    ) -> None:
        super().__init__()
        at_least("threshold", threshold, 1)
        self.threshold = threshold
        self.stop_training_on_fire = stop_training_on_fire
        self.training_job_name_prefix = training_job_name_prefix
        self._latest: Step | None = None

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        if not step.time_ns:
            return None
        before, self._latest = self._latest, step
        self.looked_at(step, 0)
        return self._judge_gap(before, step.time_ns)

    def waited(self, now_ns: int) -> Iterable[Finding]:
        """See the base class."""
        found = None if self._fired else self._judge_gap(self._latest, now_ns)
        if found is None:
            return []
        self._fired = True
        return [found]

    def _judge_gap(self, before: Step | None, until_ns: int) -> Finding | None:
        if before is None:
            return None
        seconds = (until_ns - before.time_ns) / 1e9
        self.came_near(seconds / self.threshold, f"after step {before.step}")
        if not seconds > self.threshold:
            return None
        return self.fire(
            before,
            [],
            [seconds],
            threshold=self.threshold,
            message=f"nothing was recorded for more than {self.threshold} s after step {before.step}",
            suggestion="look for a deadlock, a data loader or a network that hangs; 'stepwatch stop --kill' ends the "
            "job",
            unit="s",
        )


def _opened(place: str) -> Trace:
    return Trace(local_copy(place) if is_url(place) else place)
