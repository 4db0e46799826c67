"""What the report shows of a run, read column by column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stepwatch.cli.report.downsample import bucket_max, stretches
from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import TensorInfo
from stepwatch.rules.finding import Finding
from stepwatch.rules.step import is_loss

MAX_COLUMNS = 120
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
        layers: names from the first to the last layer.
        left, right: steps at which each column begins and ends, [columns].
        values: log10 of the root mean square, [layers, columns]; NaN where nothing was recorded.
        bad: whether an entry was not finite, [layers, columns].
    """

    layers: list[str]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    values: NDArray[np.float64]
    bad: NDArray[np.bool_]


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


def heat_map(trace: Trace, rank: int, collection: str) -> HeatMap | None:
    """Root mean squares of a collection's tensors over the saved training steps, or None without any."""
    members = [t for t in trace.tensors().values() if collection in t.collections and _is_layer(t)]
    members.sort(key=lambda t: t.order)
    if not members:
        return None
    # In pieces, and at once into the columns that are shown: a long run has more rows than fit into memory.
    names = pa.array([t.name for t in members])
    steps = np.zeros(0, np.int64)
    for piece in _rows_of(trace, rank, names, []):
        steps = np.union1d(steps, piece["step"].to_numpy())
    if not len(steps):
        return None
    first = stretches(len(steps), MAX_COLUMNS)
    values = np.full((len(members), len(first)), -np.inf)
    bad = np.zeros(values.shape, dtype=bool)
    for piece in _rows_of(trace, rank, names, ["numel", "n_nan", "n_inf", "l2"]):
        layer = pc.index_in(piece["name"], names).to_numpy()
        at = np.searchsorted(steps, piece["step"].to_numpy())
        column = np.searchsorted(first, at, side="right") - 1
        with np.errstate(divide="ignore"):
            rms = np.log10(piece["l2"].to_numpy() / np.sqrt(np.maximum(piece["numel"].to_numpy(), 1)))
        np.maximum.at(values, (layer, column), np.where(np.isfinite(rms), rms, -45.0))
        broken = piece["n_nan"].to_numpy() + piece["n_inf"].to_numpy() > 0
        bad[layer[broken], column[broken]] = True
    values[np.isneginf(values)] = np.nan
    left = steps[first].astype(np.float64)
    widths = np.diff(left)
    last = float(max(np.median(widths), 1)) if len(widths) else 1.0
    right = np.append(left[1:], left[-1] + last)
    return _group_layers(HeatMap([t.name for t in members], left, right, values, bad))


def _rows_of(trace: Trace, rank: int, names: pa.Array, columns: list[str]) -> Iterator[pa.Table]:
    """Rows of these tensors at training steps, in pieces."""
    training = pa.array(["TRAIN", "GLOBAL"])
    for piece in TableCursor(trace, "stats", rank, ["step", "mode", "name", *columns]).read():
        yield piece.filter(pc.and_(pc.is_in(piece["mode"], training), pc.is_in(piece["name"], names)))


def _is_layer(tensor: TensorInfo) -> bool:
    return len(tensor.shape) >= 2


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
    return HeatMap(names, heat.left, heat.right, values.T, bad.T > 0)


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
