"""How far a trial has come, read from its run while it grows."""

from __future__ import annotations

from collections.abc import Callable

from stepwatch.probe.store.attempts import Attempts
from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.compare.order import OWN_SCALARS
from stepwatch.rules.step import is_eval_name
from stepwatch.rules.study.decisions import Curve

_BLOCK = 20  # losses of single batches are noise; their mean over so many is a point

Key = tuple[str, bool]
"""The name of a scalar, and whether it was measured on held-out data."""


class TrialCurves:
    """Scalars of a run's first rank as curves.

    Values of an evaluation are averaged over the step that it belongs to, and count when the next step shows that it
    is over; values of training are averaged over twenty steps that recorded them.

    Args:
        trace: the run.
        wanted: whether a scalar is one that is looked at, by its name.
        sign: -1 where higher is better, else 1.
    """

    def __init__(self, trace: Trace, wanted: Callable[[str], bool], sign: float) -> None:
        self._trace = trace
        self._wanted = wanted
        self._sign = sign
        self._cursor: tuple[TableCursor, Attempts] | None = None
        self.curves: dict[Key, Curve] = {}
        self._open: dict[Key, tuple[int, list[float]]] = {}

    def read(self, *, ended: bool) -> bool:
        """Take up what is new; whether there is a new point on a curve.

        Args:
            ended: whether no more will come.
        """
        before = self._points()
        for rows in self._following().read():
            columns = (rows[name].to_pylist() for name in ("name", "mode", "step", "value"))
            for name, mode, step, value in zip(*columns, strict=True):
                for key in [key for key, (last, _) in self._open.items() if key[1] and last < step]:
                    self._close(key)
                if not name.startswith(OWN_SCALARS) and self._wanted(name):
                    self._see((name, mode == "EVAL" or is_eval_name(name)), int(step), float(value))
        if ended:
            for key in [key for key, (_, values) in self._open.items() if key[1] or len(values) >= _BLOCK]:
                self._close(key)
        return self._points() > before

    def _following(self) -> TableCursor:
        rank = next(iter(self._trace.ranks), 0)
        attempts = self._trace.attempts(rank)
        if self._cursor is None or self._cursor[1] != attempts:
            self.curves, self._open = {}, {}
            columns = ["step", "mode", "name", "value"]
            self._cursor = TableCursor(self._trace, "scalars", rank, columns), attempts
        return self._cursor[0]

    def _see(self, key: Key, step: int, value: float) -> None:
        last, values = self._open.get(key, (step, []))
        if len(values) >= _BLOCK and not key[1] and step > last:
            self._close(key)
            values = []
        self._open[key] = (step, [*values, self._sign * value])

    def _close(self, key: Key) -> None:
        step, values = self._open.pop(key)
        self.curves.setdefault(key, Curve()).add(step, sum(values) / len(values))

    def _points(self) -> int:
        return sum(len(curve.steps) for curve in self.curves.values())
