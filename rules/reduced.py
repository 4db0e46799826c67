"""Statistics of tensors of which smdebug saved some reductions and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.schema import REDUCTION_QUANTITY, SHAPE_QUANTITY, STAT_COLUMNS
from stepwatch.rules.step import Stats, Step, TensorSet

_NEEDED = ("min", "max", "mean", "std", "l2", "abs_max")
"""Columns without which the default rules cannot judge a tensor."""


def reductions_of(step: Step) -> dict[str, dict[str, float]]:
    """What smdebug saved of each tensor at a step: reductions by name, and ``numel`` where its shape is known."""
    found: dict[str, dict[str, float]] = {}
    for (name, quantity), vector in step.derived.items():
        if quantity == SHAPE_QUANTITY:
            found.setdefault(name, {})["numel"] = float(np.prod(vector))
        elif quantity.startswith(REDUCTION_QUANTITY) and len(vector):
            found.setdefault(name, {})[quantity.removeprefix(REDUCTION_QUANTITY)] = float(vector[0])
    return found


def statistics_of(known: Mapping[str, float]) -> list[float]:
    """The row of ``stats`` that reductions tell; NaN what they do not.

    Where the shape is not known it is that of a tensor of one entry, of the same root mean square.
    """
    entries = known.get("numel", 1.0)
    of = dict.fromkeys(STAT_COLUMNS, math.nan)
    of |= {name: known[name] for name in ("min", "max", "mean", "std", "l1", "l2") if name in known}
    if "variance" in known:
        of["std"] = math.sqrt(max(known["variance"], 0.0))
    if "abs_mean" in known:
        of["l1"] = known["abs_mean"] * entries
    of["abs_max"] = known.get("abs_max", float(np.maximum(abs(of["min"]), abs(of["max"]))))
    if "numel" not in known or "l2" not in known:
        of["l2"] = math.hypot(of["mean"], of["std"]) * math.sqrt(entries)
    numbers = [value for name, value in known.items() if name != "numel"]
    of |= {"numel": entries, "n_nan": float(any(map(math.isnan, numbers)))}
    of["n_inf"] = float(any(map(math.isinf, numbers)))
    return [of[name] for name in STAT_COLUMNS]


class Reduced:
    """Adds to steps the statistics of tensors of which enough reductions were saved.

    Enough are smallest, largest and mean value and standard deviation or variance: the default rules judge tensors by
    these. Of a tensor with fewer they say that it was not recorded. One that holds what is not finite is judged by any.

    Args:
        trace: the run.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._sets: dict[tuple[str, ...], TensorSet] = {}

    def __call__(self, step: Step) -> Step:
        """The step with them."""
        if not step.derived:
            return step
        known = () if step.stats is None else step.stats.tensors.names
        rows: dict[str, Sequence[float]] = {}
        for name, reductions in reductions_of(step).items():
            row = statistics_of(reductions)
            if name not in known and _is_enough(row):
                rows[name] = row
        if not rows:
            return step
        names = (*known, *rows)
        tensors = self._sets.get(names)
        if tensors is None:
            infos = self._trace.tensors()
            tensors = self._sets[names] = TensorSet(names, lambda name: infos.get(name, TensorInfo(name)))
        matrix = np.array(list(rows.values()))
        if step.stats is not None:
            matrix = np.concatenate([step.stats.matrix, matrix])
        return replace(step, stats=Stats(tensors, matrix))


def _is_enough(row: Sequence[float]) -> bool:
    of = dict(zip(STAT_COLUMNS, row, strict=True))
    return bool(of["n_nan"] or of["n_inf"]) or not any(math.isnan(of[name]) for name in _NEEDED)
