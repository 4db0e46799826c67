"""Charts of the report, in Bokeh: transparent, and legible on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from bokeh.models import (
    BasicTicker,
    ColorBar,
    ColumnDataSource,
    HoverTool,
    Label,
    Legend,
    LinearColorMapper,
    LogScale,
    Span,
    WheelZoomTool,
)
from bokeh.palettes import Viridis256
from bokeh.plotting import figure
from numpy.typing import NDArray

from stepwatch.cli.report.data import HeatMap, Series
from stepwatch.cli.report.downsample import keep_extremes
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.profiler.phases import PHASES

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ec4899", "#14b8a6", "#eab308", "#64748b")
BAD = "#dc2626"
_MARKS = {Severity.ERROR: BAD, Severity.WARNING: "#d97706", Severity.INFO: "#0891b2"}
_TEXT = "#808995"
_GRID = "#808995"
_POINTS = 1500
_MAX_MARKS = 6
_LEGEND_COLUMNS = 3
_LEGEND_LINE = 25
_MAX_BLOCKS = 40
_SHORT_LABEL = 12


def lines(series: Sequence[Series], unit: str, findings: Sequence[Finding] = (), *, height: int = 200) -> figure:
    """Series over global steps; logarithmic where all are positive and span more than two decades.

    ``height`` is that of the chart, to which the lines of the legend are added.
    """
    finite = np.concatenate([line.values[np.isfinite(line.values)] for line in series] or [np.zeros(0)])
    logarithmic = bool(len(finite) and finite.min() > 0 and finite.max() / finite.min() > 100)
    labels = [f"{line.name} ({line.mode.lower()})" if line.mode != "TRAIN" else line.name for line in series]
    height += _legend_height(labels) if len(series) > 1 else 0
    chart = _figure(height, "global step", unit, "log" if logarithmic else "linear")
    items = []
    for number, (line, label) in enumerate(zip(series, labels, strict=True)):
        kept = keep_extremes(line.values, _POINTS)
        source = ColumnDataSource({"step": line.steps[kept], "value": line.values[kept]})
        colour = COLOURS[number % len(COLOURS)]
        parts = [chart.line("step", "value", source=source, color=colour, line_width=1.6)]
        if len(kept) <= 60:
            parts.append(chart.scatter("step", "value", source=source, color=colour, size=4))
        chart.add_tools(
            HoverTool(renderers=parts[:1], tooltips=[("", label), ("step", "@step"), (unit, "@value{0.0000}")])
        )
        items.append((label, parts))
        broken = ~np.isfinite(line.values)
        if broken.any():
            where = line.steps[broken][:200]
            level = float(finite.max()) if len(finite) else 1.0
            chart.scatter(where, np.full(len(where), level), marker="x", size=9, color=BAD, line_width=2)
    if len(items) > 1:
        legend = Legend(items=items, orientation="horizontal", click_policy="hide")
        _dress_legend(legend)
        chart.add_layout(legend, "above")
    mark(chart, findings)
    return chart


def empty(height: int, unit: str, name: str) -> figure:
    """A chart over global steps that a script of the page finds by its name, and fills."""
    return _figure(height, "global step", unit, "linear", name=f"{name}-chart")


def mark(chart: figure, findings: Sequence[Finding]) -> None:
    """Lines at the steps where problems began (dashed) and were certain."""
    for finding in list(findings)[:_MAX_MARKS]:
        colour = _MARKS[finding.severity]
        for at, dash in ((finding.first_step, "dashed"), (finding.last_step, "solid")):
            chart.add_layout(
                Span(location=at, dimension="height", line_color=colour, line_dash=dash, line_width=1.5, line_alpha=0.8)
            )


def mark_step(chart: figure, step: float, label: str) -> None:
    """A line at a step, with what happened there."""
    chart.add_layout(Span(location=step, dimension="height", line_color=_TEXT, line_dash="dashed", line_width=1.5))
    chart.add_layout(Label(x=step, y=4, y_units="screen", text=f" {label}", text_color=_TEXT, text_font_size="12px"))


def shown_values(content: HeatMap) -> NDArray[np.float64]:
    """Those of a heat map that have a colour, [n]; tensors that are zero throughout have none."""
    values: NDArray[np.float64] = content.values[np.isfinite(content.values) & (content.values > -40)]
    return values


def heat(
    content: HeatMap,
    unit: str,
    findings: Sequence[Finding] = (),
    *,
    x: str = "global step",
    limits: tuple[float, float] | None = None,
    blocks: Sequence[str] = (),
    name: str | None = None,
) -> figure:
    """Layers by steps, first layer on top; entries that were not finite in red.

    Args:
        content: the layers.
        unit: of the values.
        findings: marked at their steps.
        x: unit of the columns.
        limits: the values of the first and the last colour; by default the lowest and the highest.
        blocks: of each layer the part of the model that it is in; a line is drawn where another begins.
        name: by which a script of the page finds it.
    """
    count = len(content.layers)
    height = int(np.clip(18 * count + 90, 160, 900))
    order = list(reversed(content.layers))
    chart = _figure(height, x, "", "linear", y_range=(0, count), name=name)
    if limits is None:
        shown = shown_values(content)
        limits = (float(shown.min()), float(shown.max())) if len(shown) else (-1.0, 0.0)
    low, high = limits
    mapper = LinearColorMapper(palette=Viridis256, low=low, high=max(high, low + 1e-6), nan_color="rgba(0,0,0,0)")
    layer, column = np.nonzero(np.isfinite(content.values) | content.bad)
    bottom = (count - 1 - layer).astype(np.float32)
    source = ColumnDataSource(
        {
            "left": content.left[column].astype(np.float32),
            "right": content.right[column].astype(np.float32),
            "bottom": bottom,
            "top": bottom + 1,
            "value": content.values[layer, column].astype(np.float32),
            "name": [content.layers[i] for i in layer] if count * len(content.left) <= 6000 else layer,
        }
    )
    cells = chart.quad(
        "left",
        "right",
        "top",
        "bottom",
        source=source,
        fill_color={"field": "value", "transform": mapper},
        line_color=None,
    )
    layer, column = np.nonzero(content.bad)
    bottom = (count - 1 - layer).astype(np.float32)
    chart.quad(content.left[column], content.right[column], bottom + 1, bottom, fill_color=BAD, line_color=None)
    chart.add_tools(HoverTool(renderers=[cells], tooltips=[("", "@name"), (x, "@left"), (unit, "@value{0.00}")]))
    every = max(1, count // 40)
    ticks = list(range(0, count, every))
    chart.yaxis.ticker = [tick + 0.5 for tick in ticks]
    chart.yaxis.major_label_overrides = {tick + 0.5: _shorten(order[tick]) for tick in ticks}
    chart.ygrid.visible = False
    edges = [count - 1 - i for i, (above, below) in enumerate(pairwise(blocks)) if above != below]
    for edge in edges if len(edges) <= _MAX_BLOCKS else []:
        chart.add_layout(Span(location=edge, dimension="width", line_color=_TEXT, line_width=1))
    bar = ColorBar(color_mapper=mapper, title=unit, width=10, background_fill_color=None, ticker=BasicTicker())
    bar.title_text_color = bar.major_label_text_color = _TEXT
    chart.add_layout(bar, "right")
    mark(chart, findings)
    return chart


def stacked_times(times: pd.DataFrame, findings: Sequence[Finding] = ()) -> figure:
    """Phases of the steps, stacked; long runs by the slowest step of each stretch."""
    phases = [phase for phase in PHASES if times[phase].any()]
    chart = _figure(230 + _legend_height(phases), "global step", "milliseconds", "linear")
    kept = keep_extremes(times["duration"].to_numpy(), 600)
    source = ColumnDataSource({name: times[name].to_numpy()[kept] for name in ("step", *phases)})
    areas = chart.varea_stack(phases, x="step", source=source, color=COLOURS[: len(phases)], fill_alpha=0.75)
    legend = Legend(
        items=[(phase, [area]) for phase, area in zip(phases, areas, strict=True)], orientation="horizontal"
    )
    _dress_legend(legend)
    chart.add_layout(legend, "above")
    high = float(np.percentile(times["duration"], 99)) * 1.3
    chart.y_range.start, chart.y_range.end = 0, max(high, 1e-3)
    mark(chart, findings)
    return chart


def bars(names: Sequence[str], values: NDArray[Any], unit: str) -> figure:
    """A bar for each name, the first on top."""
    count = len(names)
    chart = _figure(int(np.clip(22 * count + 70, 120, 700)), unit, "", "linear", y_range=(-0.5, count - 0.5))
    at = np.arange(count)[::-1]
    source = ColumnDataSource({"at": at, "name": list(names), "value": np.asarray(values, dtype=np.float64)})
    drawn = chart.hbar("at", 0.7, "value", source=source, color=COLOURS[0])
    chart.add_tools(HoverTool(renderers=[drawn], tooltips=[("", "@name"), (unit, "@value{0.0000}")]))
    chart.yaxis.ticker = at.tolist()
    chart.yaxis.major_label_overrides = {int(place): _shorten(name) for place, name in zip(at, names, strict=True)}
    chart.ygrid.visible = False
    chart.x_range.start = 0
    return chart


def curve(x: NDArray[Any], y: NDArray[Any], x_unit: str, y_unit: str) -> figure:
    """y over x, both in [0, 1], with the diagonal."""
    chart = _figure(320, x_unit, y_unit, "linear")
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).astype(int))
    chart.line([0, 1], [0, 1], color=_GRID, line_dash="dashed")
    chart.line(x[kept], y[kept], color=COLOURS[0], line_width=1.6)
    return chart


def samples(
    series: Mapping[str, Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]],
    unit: str,
    findings: Sequence[tuple[Finding, float]] = (),
    *,
    x: str,
) -> figure:
    """Lines of (times, values) by label, those of one label alike, and findings at their times; ``x`` is their unit."""
    chart = _figure(230 + _legend_height(list(series)), x, unit, "linear")
    items = []
    for number, (label, alike) in enumerate(series.items()):
        look = {
            "color": COLOURS[number % len(COLOURS)],
            "line_width": 1.4,
            "line_alpha": 1.0 if len(alike) == 1 else 0.6,
        }
        drawn = []
        for times, values in alike:
            kept = keep_extremes(values, _POINTS if len(alike) == 1 else _POINTS // 2)
            drawn.append(chart.line(times[kept], values[kept], **look))
        items.append((label, drawn))
    for finding, at in list(findings)[:_MAX_MARKS]:
        chart.add_layout(Span(location=at, dimension="height", line_color=_MARKS[finding.severity], line_width=1.5))
    legend = Legend(items=items, orientation="horizontal", click_policy="hide")
    _dress_legend(legend)
    chart.add_layout(legend, "above")
    chart.y_range.start = 0
    return chart


def _figure(height: int, x: str, y: str, scale: str, **options: object) -> figure:
    chart = figure(
        height=height,
        sizing_mode="stretch_width",
        y_axis_type=scale,
        x_axis_label=x,
        y_axis_label=y,
        tools="pan,box_zoom,reset",
        active_drag="box_zoom",
        toolbar_location="above",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        output_backend="canvas",
        **options,
    )
    chart.add_tools(WheelZoomTool(dimensions="width", modifiers={"ctrl": True}))
    chart.toolbar.logo = None
    chart.toolbar.autohide = True
    for axis in (chart.xaxis, chart.yaxis):
        axis.axis_label_text_color = axis.major_label_text_color = _TEXT
        axis.axis_line_color = axis.major_tick_line_color = _GRID
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
    chart.grid.grid_line_color = _GRID
    chart.grid.grid_line_alpha = 0.18
    if isinstance(chart.y_scale, LogScale):
        chart.yaxis.ticker.num_minor_ticks = 0
    return chart


def _dress_legend(legend: Legend) -> None:
    legend.label_text_color = _TEXT
    legend.label_text_font_size = "12px"
    legend.background_fill_color = None
    legend.border_line_color = None
    legend.padding = legend.margin = 2
    legend.ncols = _legend_columns([item.label.value for item in legend.items])


def _legend_columns(labels: Sequence[str]) -> int:
    """Long names beside each other would leave a phone's screen."""
    return _LEGEND_COLUMNS if max(map(len, labels), default=0) <= _SHORT_LABEL else 1


def _legend_height(labels: Sequence[str]) -> int:
    """What a legend takes of the height of a chart, in pixels."""
    return _LEGEND_LINE * -(-len(labels) // _legend_columns(labels))


def _shorten(name: str) -> str:
    short = name.removeprefix("gradient/")
    return short if len(short) <= 34 else f"...{short[-31:]}"
