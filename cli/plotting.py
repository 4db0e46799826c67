"""Curves of runs: scalars, and statistics of tensors, for a file, a notebook or the terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stepwatch.cli.report.downsample import keep_extremes
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.rules.compare.order import OWN_SCALARS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CURVES = 20
_MAX_POINTS = 4000
_TERMINAL_POINTS = 1000


@dataclass(frozen=True)
class Curve:
    """A line: what it shows, steps [n], ascending, and values [n]."""

    label: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def curves_of(traces: Sequence[Trace], pattern: str, column: str = "l2") -> list[Curve]:
    """Curves whose name a regular expression finds, of the first rank of each run.

    Args:
        traces: the runs.
        pattern: searched in the names of scalars and tensors.
        column: of tensors, the statistic to show: a column of ``stats``, or "rms", the root mean square.

    Raises:
        ValueError: an expression or column that cannot be used, or nothing that it finds, or more than 20 curves.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    if column not in (*STAT_COLUMNS, "rms"):
        raise ValueError(f"column is {column!r}; expected rms or one of {', '.join(STAT_COLUMNS)}")
    found = []
    for trace in traces:
        prefix = f"{trace.source.name}: " if len(traces) > 1 else ""
        found += list(_scalars(trace, expression, prefix))
        names = [name for name in trace.tensors() if expression.search(name)]
        if len(found) + len(names) > MAX_CURVES:
            raise ValueError(f"{pattern!r} finds {len(found) + len(names)} curves; expected at most {MAX_CURVES}")
        found += list(_tensors(trace, names, column, prefix))
    if not found:
        raise ValueError(f"{pattern!r} finds no scalar and no tensor; stepwatch show --tensors . lists them")
    return found


def _scalars(trace: Trace, expression: re.Pattern[str], prefix: str) -> Iterator[Curve]:
    rows = trace.table("scalars", columns=["name", "mode", "step", "value"], ranks=trace.ranks[:1]).to_pandas()
    for (name, mode), group in rows.groupby(["name", "mode"], sort=False):
        if expression.search(name) and not name.startswith(OWN_SCALARS):
            means = group.groupby("step")["value"].mean()
            yield Curve(f"{prefix}{name} [{mode}]", means.index.to_numpy(np.int64), means.to_numpy(np.float64))


def _tensors(trace: Trace, names: Sequence[str], column: str, prefix: str) -> Iterator[Curve]:
    if not names:
        return
    read = ["l2", "numel"] if column == "rms" else [column]
    kept = {"ranks": trace.ranks[:1], "modes": ["TRAIN", "GLOBAL"], "names": names}
    rows = trace.table("stats", columns=["name", "step", *read], **kept).to_pandas()  # type: ignore[arg-type]
    for name, group in rows.groupby("name", sort=False):
        values = group[read[0]].to_numpy(np.float64)
        if column == "rms":
            values = values / np.sqrt(np.maximum(group["numel"].to_numpy(), 1))
        yield Curve(f"{prefix}{name} {column}", group["step"].to_numpy(np.int64), values)


def figure(curves: Sequence[Curve], *, log: bool = False) -> Figure:
    """A figure of matplotlib, which does not belong to pyplot; of long curves the extremes are kept.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ImportError("plots need matplotlib: pip install 'stepwatch[plot]'") from None
    drawn = Figure(figsize=(9, 5), layout="constrained")
    axes = drawn.add_subplot()
    for curve in curves:
        kept = keep_extremes(curve.values, _MAX_POINTS)
        axes.plot(curve.steps[kept], curve.values[kept], label=curve.label, linewidth=1.2)
        broken = curve.steps[~np.isfinite(curve.values)]
        if len(broken):
            axes.axvline(float(broken[0]), color="tab:red", linestyle=":", label=f"not finite: {curve.label}")
    axes.set_xlabel("step")
    axes.set_yscale("log" if log else "linear")
    axes.grid(alpha=0.3)
    # Given by hand, for matplotlib hides labels that begin with an underscore; dollars would begin a formula.
    handles = axes.get_lines()
    axes.legend(handles, [str(line.get_label()).replace("$", r"\$") for line in handles], fontsize="small")
    return drawn


def plot(run: str | os.PathLike[str], pattern: str, column: str = "l2", *, log: bool = False) -> Figure:
    """Curves of a run whose name ``pattern`` finds, as a figure of matplotlib; for notebooks.

    Args:
        run: its directory.
        pattern, column: as for :func:`curves_of`.
        log: whether the values are on a logarithmic scale.

    Raises:
        TraceError, ValueError, ImportError: as :class:`Trace`, :func:`curves_of` and :func:`figure`.
    """
    return figure(curves_of([Trace(Path(run))], pattern, column), log=log)


def in_terminal(curves: Sequence[Curve], width: int, *, log: bool = False, colors: bool = True) -> str:
    """The curves in Braille characters, ``width`` columns wide; values that are not finite are left out.

    Raises:
        ImportError: plotille is not installed.
    """
    try:
        import plotille
    except ModuleNotFoundError:
        raise ImportError("plots need plotille: pip install 'stepwatch[plot]'") from None
    canvas = plotille.Figure()
    canvas.width, canvas.height = max(20, width - 24), 16
    canvas.with_colors, canvas.color_mode = colors, "names"
    canvas.x_label, canvas.y_label = "step", "log10" if log else "value"
    canvas.x_ticks_fkt = lambda low, high: f"{low:.0f}"
    canvas.y_ticks_fkt = lambda low, high: f"{low:.4g}"
    lines = []
    for curve in curves:
        shown = np.isfinite(curve.values) & ((curve.values > 0) if log else True)
        steps, values = curve.steps[shown], curve.values[shown]
        lost = len(curve.values) - len(values)
        label = curve.label + (f" ({lost} values left out)" if lost else "")
        kept = keep_extremes(values, _TERMINAL_POINTS)
        if len(kept):
            values = np.log10(values) if log else values
            canvas.plot(steps[kept].tolist(), values[kept].tolist(), label=label)
        else:
            lines.append(f"{curve.label}: no value can be shown")
    return "\n".join([canvas.show(legend=True), *lines])
