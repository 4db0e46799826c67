"""Which of several runs is better by a scalar, and since when."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.compare.order import OWN_SCALARS
from stepwatch.rules.compare.parting import MIN_POINTS, window, windows
from stepwatch.rules.step import is_eval_name, is_loss

_LOWER_IS_BETTER = re.compile(
    r"err|loss|perplexity|ppl|divergence|mae|mse|wer|cer|bpc|fid|learning_rate", re.IGNORECASE
)
_STANDARD_ERRORS = 3.0

Key = tuple[str, str]


@dataclass(frozen=True)
class Objective:
    """A scalar by which runs are judged: its name, its mode, and "min" or "max"."""

    name: str
    mode: str
    goal: str


@dataclass(frozen=True)
class Series:
    """A scalar of a run: steps [n], ascending, and values [n]."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """How a run stands: its last value (the mean of the last ones where there are many), its best, and when."""

    run: str
    last: float
    last_step: int
    best: float
    best_step: int


@dataclass(frozen=True)
class Verdict:
    """Which of two runs is better at the last step that both reached.

    Attributes:
        better: the better run, or None where they do not differ beyond noise.
        since: the first step from which it stayed ahead; None without a better one.
        by: how much its level is better by.
        note: what qualifies it.
    """

    better: str | None
    since: int | None
    by: float
    note: str = ""


def series_of(trace: Trace) -> dict[Key, Series]:
    """Scalars of the run's first rank by (name, mode); several values of a step are averaged."""
    columns = ["name", "mode", "step", "value"]
    rows = trace.table("scalars", columns=columns, ranks=trace.ranks[:1]).to_pandas()
    found: dict[Key, Series] = {}
    for (name, mode), group in rows.groupby(["name", "mode"], sort=False):
        if not str(name).startswith(OWN_SCALARS):
            means = group.groupby("step")["value"].mean()
            found[str(name), str(mode)] = Series(means.index.to_numpy(np.int64), means.to_numpy(np.float64))
    return found


def choose(wanted: str | None, runs: Sequence[dict[Key, Series]]) -> Objective | None:
    """The objective that a user names, or the evaluation loss, or the training loss; None without any.

    Args:
        wanted: NAME, NAME:min or NAME:max; the better direction is guessed from the name where it is not given.
        runs: the scalars of each run.

    Raises:
        ValueError: a scalar that not every run has.
    """
    shared = [key for key in runs[0] if all(key in scalars for scalars in runs)]
    if wanted is not None:
        name, _ = goal_of(wanted)
        keys = [key for key in shared if key[0] == name]
        if not keys:
            known = ", ".join(dict.fromkeys(key[0] for key in shared)) or "none"
            raise ValueError(f"objective {name!r} was not recorded in every run; scalars that were: {known}")
    else:
        keys = [key for key in shared if is_loss(key[0])]
    if not keys:
        return None
    name, mode = min(keys, key=lambda key: not (key[1] == "EVAL" or is_eval_name(key[0])))
    return Objective(name, mode, goal_of(wanted or name)[1])


def goal_of(wanted: str) -> tuple[str, str]:
    """The name in NAME, NAME:min or NAME:max, and "min" or "max", guessed from the name where it is not given."""
    if wanted.endswith((":min", ":max")):
        return wanted[:-4], wanted[-3:]
    return wanted, "min" if _LOWER_IS_BETTER.search(wanted) else "max"


def standing(run: str, series: Series, goal: str) -> Standing:
    """How a run stands by its series."""
    finite = np.isfinite(series.values)
    last = series.values[-(window(len(series.values)) if len(series.values) >= MIN_POINTS else 1) :].mean()
    if not finite.any():
        return Standing(run, float(last), int(series.steps[-1]), float("nan"), int(series.steps[0]))
    signed = np.where(finite, series.values if goal == "min" else -series.values, np.inf)
    best = int(signed.argmin())
    return Standing(run, float(last), int(series.steps[-1]), float(series.values[best]), int(series.steps[best]))


def judge(names: tuple[str, str], one: Series, two: Series, goal: str) -> Verdict:
    """Which of two runs is better, over the steps that both passed; between its points a series is interpolated."""
    first, last = max(one.steps[0], two.steps[0]), min(one.steps[-1], two.steps[-1])
    steps = np.union1d(one.steps, two.steps)
    steps = steps[(steps >= first) & (steps <= last)]
    if not len(steps):
        return Verdict(None, None, 0.0, "the runs have no step in common")
    a, b = (np.interp(steps, series.steps, series.values) for series in (one, two))
    if np.isfinite(a[-1]) != np.isfinite(b[-1]):
        worse = a if np.isfinite(b[-1]) else b
        since = steps[np.flatnonzero(np.isfinite(worse))[-1] + 1] if np.isfinite(worse).any() else steps[0]
        return Verdict(names[worse is a], int(since), float("inf"), "the other is not finite any more")
    gain = (a - b if goal == "min" else b - a)[:, None]  # of the second over the first
    width = window(len(steps)) if len(steps) >= MIN_POINTS else 1
    level = (windows(gain, width) / width)[:, 0]
    errors = [_error(each, int(steps[-width]), int(last), width) for each in (one, two)]
    noise = _STANDARD_ERRORS * math.hypot(*errors)
    note = "" if width > 1 else f"from {len(steps)} values, too few to tell noise"
    if not abs(level[-1]) > noise:
        return Verdict(None, None, abs(float(level[-1])), note)
    sign = np.sign(level[-1])
    behind = np.flatnonzero(~(level * sign > 0))
    ahead = behind[-1] + 1 if len(behind) else 0
    # A window begins before what turns it: the first point in it that is ahead.
    since = steps[ahead + np.flatnonzero(gain[ahead:, 0] * sign > 0)[0]]
    return Verdict(names[int(level[-1] > 0)], int(since), abs(float(level[-1])), note)


def _error(series: Series, first: int, last: int, width: int) -> float:
    """Standard error of the level of a series between two steps, by its own scatter around a line there and before.

    Points that follow one another are alike, so that they count for fewer: (1 - r) / (1 + r) of them with an
    autocorrelation r, which is too low by about (1 + 3 r) / n of n points (Kendall 1954). The scatter of the
    difference of both series would say less: two runs that share their data and their first steps differ by next to
    nothing, and that smoothly.
    """
    end = int(np.searchsorted(series.steps, last, "right"))
    count = end - int(np.searchsorted(series.steps, first))
    around = series.values[end - min(4 * width, max(end // 2, width), end) : end]
    around = around[np.isfinite(around)]
    if width == 1 or len(around) < 4:
        return 0.0
    at = np.arange(len(around))
    left = around - np.polyval(np.polyfit(at, around, 1), at)
    square = float(left @ left)
    if not square:
        return 0.0
    r = float(left[1:] @ left[:-1]) / square
    r = min(max(r + (1 + 3 * r) / len(left), 0.0), 0.9)
    return math.sqrt(square / (len(left) - 2) / max(count, 1) * (1 + r) / (1 - r))
