"""Where two curves part: the first point from which they differ by more than their noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

MIN_POINTS = 8
MAX_WINDOW = 16

_JITTER_TO_STD = 0.886  # the mean magnitude of the difference of two normal samples is 1.128 standard deviations
_ROUNDING = 1e-5  # relative; differences below it are those of single precision


def window(points: int) -> int:
    """How many points in a row must agree that curves of this many points differ."""
    return min(MAX_WINDOW, points // 2)


def parted(a: Matrix, b: Matrix) -> NDArray[np.intp]:
    """First point from which two curves differ beyond noise, for many pairs of curves at once.

    They do at a point where, over the next ``window`` points, the difference keeps its sign (one exception is
    allowed), and its mean exceeds the step-to-step noise of the curves and 1.2 times that of the difference. Where
    only one of the two is infinite they part at once.

    Args:
        a, b: values at the same steps, [points, curves]; infinite where a value is not finite, NaN where it is not
            known, which is passed over.

    Returns:
        Index of the point per curve, [curves]; -1 where they do not part.
    """
    points, curves = a.shape
    width = window(points)
    broken = (np.isinf(a) != np.isinf(b)) & ~(np.isnan(a) | np.isnan(b))
    first = np.full(curves, points)
    if points >= MIN_POINTS:
        apart = _apart(a, b, width)
        first = np.where(apart.any(axis=0), apart.argmax(axis=0), points)
    first = np.minimum(first, np.where(broken.any(axis=0), broken.argmax(axis=0), points))
    return np.where(first == points, -1, first)


def _apart(a: Matrix, b: Matrix, width: int) -> NDArray[np.bool_]:
    """Whether the curves differ over the ``width`` points from each on, [points - width + 1, curves]."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = b - a
    known = np.isfinite(difference)
    difference = np.where(known, difference, 0.0)
    mean = np.abs(windows(difference, width)) / width
    agreeing = np.maximum(windows(difference > 0, width), windows(difference < 0, width))
    noise = np.maximum(jitter(a, width), jitter(b, width))
    rounding = _ROUNDING * windows(np.where(known, np.abs(a), 0.0), width) / width
    enough = np.maximum(np.maximum(noise, 1.2 * jitter(difference, width)), rounding)
    apart: NDArray[np.bool_] = (agreeing >= width - 1) & (mean > enough)
    # The window looks ahead: what parts within it has not parted at its beginning.
    return apart & (np.abs(difference[: len(apart)]) > enough / 2)


def jitter(values: Matrix, width: int) -> Matrix:
    """Standard deviation of the noise from step to step around each point, [points - width + 1, curves].

    It is taken over four windows: within one, points that agree by chance also have little noise by chance.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.abs(np.diff(values, axis=0))
    steps = np.where(np.isfinite(steps), steps, 0.0)
    wide = min(4 * width, len(steps))
    noise = _JITTER_TO_STD * windows(steps, wide) / wide
    around = np.arange(len(values) - width + 1) - (wide - width) // 2
    return noise[np.clip(around, 0, len(noise) - 1)]


def windows(values: NDArray[np.float64] | NDArray[np.bool_], width: int) -> Matrix:
    """Sums over ``width`` points from each on, [points - width + 1, curves]."""
    view = np.lib.stride_tricks.sliding_window_view(values, width, axis=0)
    summed: Matrix = view.sum(axis=-1, dtype=np.float64)
    return summed
