"""Whether two runs are the same bit for bit, and where they cease to be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.rules.compare.order import OWN_SCALARS, kind_of, place_of
from stepwatch.rules.step import Step


@dataclass(frozen=True)
class FirstDifference:
    """Where two runs cease to agree bit for bit.

    Attributes:
        step, mode, rank: the first step at which a number differs.
        tensors: all tensors and scalars that differ there, those that come first in a training step first.
        column: what of the first of them differs: a statistic, "value", or "data" of a whole tensor.
        values: that number in both runs; None for whole tensors.
        meaning: what the first of them says.
    """

    step: int
    mode: str
    rank: int
    tensors: tuple[str, ...]
    column: str
    values: tuple[float, float] | None
    meaning: str


_Key = tuple[int, str, int]


def whole_tensors(trace: Trace, rank: int) -> dict[_Key, dict[str, bytes]]:
    """Digests of the tensors that were saved whole, by step."""
    found: dict[_Key, dict[str, bytes]] = {}
    columns = ["step", "mode", "mode_step", "name", "dtype", "shape", "data"]
    for rows in TableCursor(trace, "values", rank, columns).read():
        for row in rows.to_pylist():
            digest = hashlib.blake2b(row["data"], digest_size=16, key=f"{row['dtype']}{row['shape']}".encode()[:64])
            found.setdefault((row["step"], row["mode"], row["mode_step"]), {})[row["name"]] = digest.digest()
    return found


class Exactness:
    """Looks for the first number that differs."""

    def __init__(
        self,
        rank: int,
        infos: dict[str, TensorInfo],
        whole: dict[_Key, dict[str, bytes]],
        other_whole: dict[_Key, dict[str, bytes]],
    ) -> None:
        self._rank = rank
        self._infos = infos
        self._whole = (whole, other_whole)
        self._first_step: int | None = None
        self.found: FirstDifference | None = None

    def see(self, one: Step, two: Step) -> None:
        """Take the same step of both runs."""
        if self.found is not None:
            return
        if self._first_step is None:
            self._first_step = one.step
        differing: dict[str, tuple[str, tuple[float, float] | None]] = {}
        for name in one.scalars.keys() & two.scalars.keys():
            values = one.scalars[name], two.scalars[name]
            if values[0] != values[1] and not np.isnan(values).all() and not name.startswith(OWN_SCALARS):
                differing[name] = "value", values
        differing.update(_differing_statistics(one, two))
        key = one.step, one.mode, one.mode_step
        mine, theirs = (whole.get(key, {}) for whole in self._whole)
        for name in mine.keys() & theirs.keys():
            if mine[name] != theirs[name]:
                differing.setdefault(name, ("data", None))
        if differing:
            names = sorted(differing, key=lambda name: (place_of(name, self._infos.get(name)), name))
            column, numbers = differing[names[0]]
            meaning = _meaning(names[0], self._infos.get(names[0]), first=one.step == self._first_step)
            self.found = FirstDifference(one.step, one.mode, self._rank, tuple(names), column, numbers, meaning)


def _differing_statistics(one: Step, two: Step) -> Iterator[tuple[str, tuple[str, tuple[float, float]]]]:
    if one.stats is None or two.stats is None:
        return
    mine, theirs = one.stats.matrix, two.stats.matrix
    names = one.stats.tensors.names
    if names != two.stats.tensors.names:
        where = {name: row for row, name in enumerate(two.stats.tensors.names)}
        shared = [row for row, name in enumerate(names) if name in where]
        names = tuple(names[row] for row in shared)
        mine, theirs = mine[shared], theirs[[where[name] for name in names]]
    unequal = (mine != theirs) & ~(np.isnan(mine) & np.isnan(theirs))
    for row in np.flatnonzero(unequal.any(axis=1)):
        column = int(unequal[row].argmax())
        yield names[row], (STAT_COLUMNS[column], (float(mine[row, column]), float(theirs[row, column])))


def _meaning(name: str, info: TensorInfo | None, *, first: bool) -> str:
    kind = kind_of(name, info)
    if kind == "parameter":
        if first:
            return "the runs do not start from the same parameters: seed, initialisation or checkpoint"
        return "an update before this step differed, at a step or in a tensor that was not saved in both"
    return {
        "activation": "the parameters agree, and the forward pass gave something else: data, dropout or an operation "
        "that is not deterministic",
        "loss": "what was recorded before it agrees, and the loss does not: data, labels, dropout or an operation "
        "that is not deterministic",
        "gradient": "what was recorded of the forward pass agrees, and the backward pass gave something else: an "
        "operation that is not deterministic, or another scale of the loss or limit of the norm",
        "scalar": "what was recorded of the model agrees, and what was logged does not",
    }[kind]
