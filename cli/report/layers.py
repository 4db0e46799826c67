"""The report's page about one layer: its tensors' statistics over the steps, drawn when the layer is chosen."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure
from numpy.typing import NDArray

from stepwatch.cli.report import charts
from stepwatch.cli.report.downsample import keep_extremes
from stepwatch.cli.report.history import History
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.schema import UPDATE_QUANTITY
from stepwatch.rules.finding import Finding

_NUMBERS = 300_000  # on the page, over all tensors; four bytes each
_MIN_COLUMNS = 8
_UPDATES = 200
_FIELDS = ("rms", "low", "high", "mean", "std")


def layer_charts() -> dict[str, figure]:
    """The empty charts that a chosen layer is drawn into, by name."""
    sizes = charts.empty(280, "log10 rms", "layer-sizes")
    source = ColumnDataSource({"steps": [], "values": [], "colour": [], "name": []}, name="layer-sizes")
    lines = sizes.multi_line("steps", "values", source=source, color="colour", line_width=1.8)
    sizes.add_tools(
        HoverTool(renderers=[lines], tooltips=[("", "@name"), ("step", "$x{0}"), ("log10 rms", "$y{0.00}")])
    )

    spread = charts.empty(280, "value of entries", "layer-spread")
    source = ColumnDataSource(
        {name: [] for name in ("step", "low", "high", "below", "above", "mean")}, name="layer-spread"
    )
    spread.varea("step", "low", "high", source=source, color=charts.COLOURS[0], fill_alpha=0.15)
    spread.varea("step", "below", "above", source=source, color=charts.COLOURS[0], fill_alpha=0.35)
    mean = spread.line("step", "mean", source=source, color=charts.COLOURS[0], line_width=1.8)
    numbers = [("step", "@step"), ("smallest", "@low"), ("mean", "@mean"), ("largest", "@high")]
    spread.add_tools(HoverTool(renderers=[mean], tooltips=numbers, mode="vline"))

    updates = charts.empty(280, "log10 of update / weight", "layer-updates")
    source = ColumnDataSource({"steps": [], "values": [], "colour": [], "name": []}, name="layer-updates")
    updates.multi_line("steps", "values", source=source, color="colour", line_width=1.8)
    return {"layer_sizes": sizes, "layer_spread": spread, "layer_updates": updates}


def layer_data(trace: Trace, rank: int, history: History, findings: Sequence[Finding]) -> dict[str, Any]:
    """What the script of the page draws from: layers in module order, and all numbers in one block.

    Returns:
        ``layers``: each with ``name``, ``block`` and ``kind``, its ``tensors`` (their place among the numbers, their
        measured ``updates``) and the ``findings`` that name one of them; ``steps`` in the middle of each column; and
        ``numbers``, little-endian float32 [tensors, fields, columns] in base64.
    """
    columns = int(np.clip(_NUMBERS // (len(_FIELDS) * len(history.tensors)), _MIN_COLUMNS, len(history.left)))
    joined = _joined(history, columns)
    updates = _updates(trace, rank)
    layers: dict[str, dict[str, Any]] = {}
    for place, tensor in enumerate(history.tensors):
        name = tensor.module if tensor.module is not None else tensor.name
        layer = layers.setdefault(
            name,
            {"name": name, "block": block_of(name), "kind": tensor.module_type or "", "tensors": [], "findings": []},
        )
        shape = "x".join(map(str, tensor.shape)) or "1"
        entry = {"name": tensor.name, "shape": shape, "at": place, "broken": bool(history.bad[place].any())}
        if tensor.name in updates:
            entry["updates"] = updates[tensor.name]
        layer["tensors"].append(entry)
    of_tensor = {entry["name"]: layer for layer in layers.values() for entry in layer["tensors"]}
    for number, finding in enumerate(findings):
        told: list[int] = []
        for name in finding.tensors:
            owner = of_tensor.get(name)
            if owner is not None and id(owner) not in told:
                told.append(id(owner))
                owner["findings"].append({"key": f"finding{number}", "text": f"{finding.rule}: {finding.message}"})
    numbers = np.stack([joined[field] for field in _FIELDS], axis=1).astype("<f4")
    return {
        "layers": list(layers.values()),
        "steps": joined["step"].tolist(),
        "colours": charts.COLOURS,
        "numbers": base64.b64encode(numbers.tobytes()).decode(),
    }


def block_of(layer: str) -> str:
    """The part of a model that a layer is shown with: what is numbered outermost, or its first name."""
    parts = layer.split(".")
    numbered = next((place for place, part in enumerate(parts[:-1]) if re.fullmatch(r"\d+", part)), 0)
    return ".".join(parts[: numbered + 1]) if len(parts) > 1 else ""


def _joined(history: History, size: int) -> dict[str, NDArray[np.float64]]:
    """The fields [tensors, columns] in so many columns, and the step in the middle of each."""
    count = len(history.left)
    starts = np.unique(np.linspace(0, count, size, endpoint=False).astype(np.intp))
    ends = np.append(starts[1:], count)
    # NaN stands for nothing recorded: fmax and fmin pass it over.
    found = {
        "rms": np.fmax.reduceat(history.rms, starts, axis=1),
        "low": np.fmin.reduceat(history.low, starts, axis=1),
        "high": np.fmax.reduceat(history.high, starts, axis=1),
    }
    for name, values in (("mean", history.mean), ("std", history.std)):
        there = np.isfinite(values)
        total = np.add.reduceat(np.where(there, values, 0.0), starts, axis=1)
        known = np.add.reduceat(there.astype(np.float64), starts, axis=1)
        found[name] = np.where(known > 0, total / np.maximum(known, 1), np.nan)
    found["step"] = (history.left[starts] + history.right[ends - 1] - 1) / 2
    return found


def _updates(trace: Trace, rank: int) -> dict[str, dict[str, list[float]]]:
    """Of weights whose updates are measured, the steps, and log10 of each update's norm by the weight's."""
    rows = trace.table("derived", columns=["step", "name", "quantity", "value"], ranks=[rank]).to_pandas()
    found = {}
    for name, group in rows[rows["quantity"] == UPDATE_QUANTITY].groupby("name", sort=False):
        group = group.sort_values("step", kind="stable")
        change, norm = (group["value"].str[place].to_numpy(dtype=np.float64) for place in (0, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = change / norm
        shown = np.isfinite(ratio) & (ratio > 0)
        steps, ratio = group["step"].to_numpy()[shown], ratio[shown]
        kept = keep_extremes(ratio, _UPDATES)
        if len(kept):
            found[str(name)] = {"steps": steps[kept].tolist(), "values": np.log10(ratio[kept]).round(4).tolist()}
    return found
