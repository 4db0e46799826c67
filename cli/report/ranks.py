"""The report's part about ranks beside each other: what they compute, where their times are shown elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stepwatch.cli.report import charts
from stepwatch.cli.report.boosting import Part
from stepwatch.cli.report.data import Series, scalar_series
from stepwatch.cli.report.downsample import evenly
from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Finding

_RANKS = 8


def rank_parts(trace: Trace, findings: Sequence[Finding]) -> list[Part]:
    """Losses, gradients and ends of the ranks; empty for a run of one rank."""
    if len(trace.ranks) < 2:
        return []
    shown = [trace.ranks[place] for place in evenly(len(trace.ranks), _RANKS)]
    losses = {rank: _main_loss(trace, rank) for rank in shown}
    gradients = {rank: _gradient_norms(trace, rank) for rank in shown}
    which = "" if len(shown) == len(trace.ranks) else f" {len(shown)} of {len(trace.ranks)} ranks."
    parts = []
    lines = [Series(f"rank {rank}", line.mode, line.steps, line.values) for rank, line in losses.items() if line]
    if lines:
        text = f"Each rank's own batches: ranks that are fed alike lie within each other's noise.{which}"
        parts.append(Part("Loss", text, charts.lines(lines, "loss", findings)))
    norms = [Series(f"rank {rank}", "TRAIN", *found) for rank, found in gradients.items() if len(found[0])]
    if norms:
        text = (
            "Of all recorded gradients, as the optimizer is given them: where ranks average them, the lines are one; "
            f"ranks that hold shards each have their own.{which}"
        )
        parts.append(Part("Norm of the gradients", text, charts.lines(norms, "norm", findings)))
    rows = [_row(trace, rank, losses[rank], gradients[rank], findings) for rank in shown]
    head = ("rank", "ended", "training steps", "last loss", "median gradient norm", "findings")
    return [*parts, Part("In numbers", which.strip(), head=head, rows=rows, wide=True)]


def _main_loss(trace: Trace, rank: int) -> Series | None:
    losses, _ = scalar_series(trace, rank)
    return next((line for line in losses if line.mode in ("TRAIN", "GLOBAL")), None)


def _gradient_norms(trace: Trace, rank: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps at which gradients were saved, and the norm of all of them together."""
    names = pa.array([t.name for t in trace.tensors().values() if "gradients" in t.collections], pa.string())
    squares = pd.Series(dtype=np.float64)
    for piece in TableCursor(trace, "stats", rank, ["step", "mode", "name", "l2"]).read():
        rows = piece.filter(pc.is_in(piece["name"], names))
        found = pd.Series(rows["l2"].to_numpy() ** 2, index=rows["step"].to_numpy())
        squares = squares.add(found.groupby(level=0).sum(), fill_value=0.0)
    squares = squares.sort_index()
    return squares.index.to_numpy(dtype=np.int64), np.sqrt(squares.to_numpy())


def _row(
    trace: Trace,
    rank: int,
    loss: Series | None,
    gradients: tuple[NDArray[np.int64], NDArray[np.float64]],
    findings: Sequence[Finding],
) -> tuple[str, ...]:
    end = trace.end(rank)
    steps = trace.table("steps", columns=["step"], ranks=[rank], modes=["TRAIN", "GLOBAL"])
    return (
        f"rank {rank}",
        end.status if end is not None else "not yet",
        str(len(pc.unique(steps["step"]))),
        f"{loss.values[-1]:.4g}" if loss is not None else "-",
        f"{np.median(gradients[1]):.4g}" if len(gradients[1]) else "-",
        str(sum(finding.rank == rank for finding in findings)),
    )
