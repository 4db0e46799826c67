"""Curves of two runs at the steps that both recorded, and where they part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.rules.compare.order import OWN_SCALARS, place_of
from stepwatch.rules.compare.parting import MIN_POINTS, parted
from stepwatch.rules.step import Step, TensorSet

_CHUNK = 256  # curves that are held side by side in several matrices
_NUMEL, _N_NAN, _N_INF, _L2 = (STAT_COLUMNS.index(column) for column in ("numel", "n_nan", "n_inf", "l2"))


@dataclass(frozen=True)
class Parting:
    """A curve of one run that leaves that of another beyond noise.

    Attributes:
        name: a scalar, or a tensor, of which the root mean square is compared.
        module: dotted path of the tensor's module; None for scalars.
        mode: mode of the scalar; tensors are compared in training.
        step: the first step from which the curves differ beyond noise.
        values: both at that step.
        last_values: both at the last step that both recorded.
    """

    name: str
    module: str | None
    mode: str
    step: int
    values: tuple[float, float]
    last_values: tuple[float, float]


class Curves:
    """Curves of two runs at the steps that both recorded."""

    def __init__(self) -> None:
        self._scalars: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
        self._steps: list[int] = []
        self._rows: tuple[list[tuple[TensorSet, NDArray[np.float64]]], ...] = ([], [])
        self.notes: list[str] = []

    def see(self, one: Step, two: Step) -> None:
        """Take the same step of both runs."""
        for name in one.scalars.keys() & two.scalars.keys():
            if not name.startswith(OWN_SCALARS):
                points = self._scalars.setdefault((name, one.mode), [])
                points.append((one.step, one.scalars[name], two.scalars[name]))
        if one.training and one.stats is not None and two.stats is not None:
            self._steps.append(one.step)
            for rows, stats in zip(self._rows, (one.stats, two.stats), strict=True):
                rows.append((stats.tensors, _root_mean_square(stats.matrix)))

    def partings(self, infos: dict[str, TensorInfo]) -> list[Parting]:
        """Those that part, in order; consumes what was seen."""
        found: list[Parting] = []
        for (name, mode), points in self._scalars.items():
            table = np.nan_to_num(np.array(points), nan=np.inf, posinf=np.inf, neginf=np.inf)
            found += _part(table[:, 0].astype(np.int64), table[:, 1:2], table[:, 2:3], [(name, None)], mode)
        if 0 < len(self._steps) < MIN_POINTS:
            self.notes.append(
                f"{len(self._steps)} steps have statistics in both; whether curves part beyond noise takes {MIN_POINTS}"
            )
        names = self._shared_names()
        steps = np.array(self._steps, np.int64)
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            one, two = (_columns(rows, chunk) for rows in self._rows)
            modules = [(name, infos[name].module or "" if name in infos else "") for name in chunk]
            found += _part(steps, one, two, modules, "TRAIN")
        return sorted(found, key=lambda parting: (parting.step, place_of(parting.name, infos.get(parting.name))))

    def _shared_names(self) -> list[str]:
        sets = [
            dict.fromkeys(name for tensors in {id(t): t for t, _ in rows}.values() for name in tensors.names)
            for rows in self._rows
        ]
        return [name for name in sets[0] if name in sets[1]]


def _root_mean_square(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """[tensors]; infinite where an entry is not finite."""
    bad = matrix[:, _N_NAN] + matrix[:, _N_INF] > 0
    rms: NDArray[np.float64] = np.where(bad, np.inf, matrix[:, _L2] / np.sqrt(np.maximum(matrix[:, _NUMEL], 1)))
    return rms


def _columns(rows: list[tuple[TensorSet, NDArray[np.float64]]], names: Sequence[str]) -> NDArray[np.float64]:
    """Curves of these tensors, [steps, tensors]; NaN where one was not recorded."""
    found = np.full((len(rows), len(names)), np.nan)
    places: dict[int, tuple[NDArray[np.intp], NDArray[np.intp]]] = {}
    for at, (tensors, values) in enumerate(rows):
        if id(tensors) not in places:
            where = {name: row for row, name in enumerate(tensors.names)}
            there = [column for column, name in enumerate(names) if name in where]
            places[id(tensors)] = np.array(there, np.intp), np.array([where[names[c]] for c in there], np.intp)
        to, of = places[id(tensors)]
        found[at, to] = values[of]
    return found


def _part(
    steps: NDArray[np.int64],
    one: NDArray[np.float64],
    two: NDArray[np.float64],
    curves: Sequence[tuple[str, str | None]],
    mode: str,
) -> Iterator[Parting]:
    for column, at in enumerate(parted(one, two)):
        if at >= 0:
            name, module = curves[column]
            values, last = (
                (float(one[at, column]), float(two[at, column])),
                (float(one[-1, column]), float(two[-1, column])),
            )
            yield Parting(name, module, mode, int(steps[at]), values, last)
