"""What the report shows of a run, read column by column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stepwatch.cli.report.downsample import bucket_max
from stepwatch.cli.report.history import History
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Finding
from stepwatch.rules.step import is_loss

MAX_LAYERS = 120


@dataclass(frozen=True)
class Series:
    """A line: name, mode, global steps [n] and values [n]."""

    name: str
    mode: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class HeatMap:
    """Layers by steps.

    Attributes:
        layers: names from the first to the last layer, of several shown as one the first and how many more.
        heads: the name of the first tensor of each, [layers]; empty where there are none.
        left, right: steps at which each column begins and ends, [columns].
        values: log10 of the root mean square, [layers, columns]; NaN where nothing was recorded.
        bad: whether an entry was not finite, [layers, columns].
    """

    layers: list[str]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    values: NDArray[np.float64]
    bad: NDArray[np.bool_]
    heads: list[str] = field(default_factory=list)


def scalar_series(trace: Trace, rank: int) -> tuple[list[Series], list[Series]]:
    """(losses, other scalars) of a rank; evaluations at one step are averaged."""
    rows = trace.table("scalars", columns=["name", "mode", "step", "value"], ranks=[rank]).to_pandas()
    losses: list[Series] = []
    others: list[Series] = []
    for (name, mode), group in rows.groupby(["name", "mode"], sort=False):
        if mode == "EVAL":
            group = group.groupby("step", as_index=False)["value"].mean()
        line = Series(str(name), str(mode), group["step"].to_numpy(), group["value"].to_numpy(dtype=np.float64))
        (losses if is_loss(str(name)) else others).append(line)
    return losses, others


def heat_map(history: History, collection: str) -> HeatMap | None:
    """Root mean squares of a collection's tensors over the saved training steps, or None without any."""
    rows = history.rows_of(collection)
    if not rows:
        return None
    values = history.rms[rows]
    with np.errstate(divide="ignore"):
        logs = np.where(values == 0, -45.0, np.log10(values))
    names = [history.tensors[row].name for row in rows]
    return _group_layers(HeatMap(names, history.left, history.right, logs, history.bad[rows], names))


def _group_layers(heat: HeatMap) -> HeatMap:
    """Neighbouring layers joined, by their largest values, where there are too many to see."""
    count = len(heat.layers)
    if count <= MAX_LAYERS:
        return heat
    values, starts = bucket_max(heat.values.T, MAX_LAYERS)
    bad, _ = bucket_max(heat.bad.T.astype(np.float64), MAX_LAYERS)
    ends = [*starts[1:], count]
    names = [
        heat.layers[a] if b - a == 1 else f"{heat.layers[a]} and {b - a - 1} more"
        for a, b in zip(starts, ends, strict=True)
    ]
    return HeatMap(names, heat.left, heat.right, values.T, bad.T > 0, [heat.layers[start] for start in starts])


def evidence_series(trace: Trace, finding: Finding) -> list[Series]:
    """The very series that decided: scalars by name, or a column of tensors' statistics."""
    names: Sequence[str] = finding.evidence.get("series", ())[:6]
    column = finding.evidence.get("column")
    if not names:
        return []
    if column is None:
        return [line for group in scalar_series(trace, finding.rank) for line in group if line.name in names]
    read = {"rms": "l2", "zero_share": "n_zero"}.get(column, column)
    rows = trace.table(
        "stats",
        columns=["step", "name", "numel", read],
        ranks=[finding.rank],
        modes=["TRAIN", "GLOBAL"],
        names=list(names),
    ).to_pandas()
    values = rows[read].to_numpy(dtype=np.float64)
    if column == "rms":
        values = values / np.sqrt(np.maximum(rows["numel"].to_numpy(), 1))
    elif column == "zero_share":
        values = values / np.maximum(rows["numel"].to_numpy(), 1)
    rows["value"] = values
    rows = rows.sort_values("step", kind="stable")  # steps before a finding are written after it
    return [
        Series(str(name), "TRAIN", group["step"].to_numpy(), group["value"].to_numpy(dtype=np.float64))
        for name, group in rows.groupby("name", sort=False)
    ]
