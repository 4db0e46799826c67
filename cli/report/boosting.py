"""The report's part about gradient-boosted trees: what labels, predictions and importances tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from bokeh.plotting import figure
from numpy.typing import NDArray

from stepwatch.cli.report import charts
from stepwatch.cli.report.data import Series
from stepwatch.probe.store.reader import Trace

_ROUNDS = 60
_FEATURES = 20
_CLASSES = 20
_BINS = 10

Array = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """One figure of the section: a chart, a table, or both.

    Attributes:
        title, text: its heading, and a sentence about it.
        chart: the chart, or None.
        head, rows: the table, empty where there is none.
        wide: whether it takes the whole width of the page.
    """

    title: str
    text: str
    chart: figure | None = None
    head: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = field(default_factory=list)
    wide: bool = False


@dataclass(frozen=True)
class _Round:
    """Labels and predictions of a saved round: [n], and [n] or [n, classes]."""

    step: int
    labels: Array
    predictions: Array


def boosting_parts(trace: Trace, rank: int) -> list[Part]:
    """What the section shows; empty for a run that is not of boosted trees."""
    parts = [*_losses(trace, rank), *_importances(trace, rank)]
    rounds = _rounds(trace, rank) if parts else []
    if rounds:
        parts += _of_regression(rounds) if _is_regression(trace, rounds[-1]) else _of_classes(rounds)
    return parts


def _rounds(trace: Trace, rank: int) -> list[_Round]:
    """At most so many of the saved rounds, evenly spread, the last among them."""
    names = ["labels", "predictions"]
    saved = np.unique(trace.table("values", columns=["step"], ranks=[rank], names=names)["step"].to_numpy())
    chosen = (
        saved[np.unique(np.linspace(0, len(saved) - 1, min(_ROUNDS, len(saved))).astype(int))] if len(saved) else []
    )
    found = []
    for step in chosen:
        columns = ["name", "dtype", "shape", "data"]
        rows = trace.table("values", columns=columns, ranks=[rank], names=names, steps=(int(step), int(step) + 1))
        values = {
            row["name"]: np.frombuffer(row["data"], np.dtype(row["dtype"])).reshape(row["shape"]).astype(np.float64)
            for row in rows.to_pylist()
        }
        if len(values) == 2 and len(values["labels"]) == len(values["predictions"]):
            found.append(_Round(int(step), values["labels"].reshape(-1), values["predictions"]))
    return found


def _is_regression(trace: Trace, last: _Round) -> bool:
    objective = str(trace.info.config.get("xgboost", {}).get("objective", {}).get("name", ""))
    if objective.startswith(("binary:", "multi:")):
        return False
    return bool(objective) or not np.array_equal(last.labels, np.rint(last.labels))


def _losses(trace: Trace, rank: int) -> Iterator[Part]:
    rows = trace.table("scalars", columns=["name", "step", "value"], ranks=[rank]).to_pandas()
    if not rows["name"].str.startswith("feature_importance/").any():
        return
    losses = {str(name): group for name, group in rows[rows["name"].str.endswith("-loss")].groupby("name", sort=False)}
    if not losses:
        return
    series = [
        Series(name, "TRAIN", group["step"].to_numpy(), group["value"].to_numpy(dtype=np.float64))
        for name, group in losses.items()
    ]
    text = "The first metric of each set that should fall."
    if len(series) > 1:
        train, held_out = series[0].values, series[1]
        best = int(np.nanargmin(held_out.values))
        text += (
            f" That of {held_out.name.removesuffix('-loss')} is lowest in round {held_out.steps[best]} of "
            f"{held_out.steps[-1]}: "
        )
        if (
            best < 0.9 * (len(held_out.values) - 1)
            and held_out.values[-1] > held_out.values[best]
            and train[-1] < train[best]
        ):
            text += "the rounds after it fit the training data only. Stop early, or regularise."
        else:
            text += "more rounds, or deeper trees, may still help."
    yield Part("Loss", text, charts.lines(series, "loss"))


def _importances(trace: Trace, rank: int) -> Iterator[Part]:
    rows = trace.table("scalars", columns=["name", "step", "value"], ranks=[rank]).to_pandas()
    rows = rows[rows["name"].str.startswith("feature_importance/")]
    if rows.empty:
        return
    rows = rows[rows["step"] == rows["step"].max()]
    kinds = rows["name"].str.split("/", n=2, expand=True)
    for kind, means in (("weight", "splits"), ("gain", "mean gain of a split"), ("cover", "mean cover of a split")):
        chosen = rows[kinds[1] == kind].sort_values("value", ascending=False).head(_FEATURES)
        if len(chosen):
            names = [name.split("/", 2)[2] for name in chosen["name"]]
            text = f"{means.capitalize()}, of the {len(names)} most important features in the last saved round."
            yield Part(f"Feature importance by {kind}", text, charts.bars(names, chosen["value"].to_numpy(), means))


def _classes_of(each: _Round) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    guess = each.predictions.argmax(axis=1) if each.predictions.ndim > 1 else np.rint(each.predictions)
    return np.rint(each.labels).astype(np.int64), guess.astype(np.int64)


def _of_classes(rounds: list[_Round]) -> Iterator[Part]:
    last = rounds[-1]
    labels, guess = _classes_of(last)
    classes = int(max(labels.max(), guess.max())) + 1
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels, guess), 1)
    names = [str(each) for each in range(classes)]
    yield Part("Labels", "Samples of each class.", charts.bars(names, counts.sum(axis=1), "samples"))
    if classes <= _CLASSES:
        rows = [(names[i], *(str(count) for count in counts[i])) for i in range(classes)]
        text = f"Round {last.step}: a row for each label, a column for each prediction."
        yield Part("Confusion", text, head=("label", *names), rows=rows)
    yield _scores(counts, names)
    yield Part(
        "Accuracy by class",
        "Share of the samples of a class predicted right, over the rounds.",
        charts.lines(list(_accuracies(rounds, min(classes, _CLASSES))), "share right"),
    )
    if classes == 2 and last.predictions.ndim == 1 and len(np.unique(labels)) == 2:
        wrong, right = _roc(labels, last.predictions)
        area = float(np.sum(np.diff(wrong) * (right[1:] + right[:-1]) / 2))
        chart = charts.curve(wrong, right, "share of negatives predicted positive", "share of positives found")
        yield Part("ROC", f"Area under the curve: {area:.4f}.", chart)


def _scores(counts: NDArray[np.int64], names: list[str]) -> Part:
    right, support = np.diag(counts), counts.sum(axis=1)
    precision = right / np.maximum(counts.sum(axis=0), 1)
    recall = right / np.maximum(support, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    table = pd.DataFrame({"precision": precision, "recall": recall, "f1": f1})
    rows = [(name, *(f"{value:.3f}" for value in row)) for name, row in zip(names, table.to_numpy(), strict=True)]
    micro = f"{right.sum() / max(counts.sum(), 1):.3f}"
    rows += [
        ("all, micro", micro, micro, micro),
        ("all, macro", *(f"{value:.3f}" for value in table.mean())),
        ("all, weighted", *(f"{value:.3f}" for value in np.average(table.to_numpy(), axis=0, weights=support))),
    ]
    return Part(
        "Precision and recall", "In the last saved round.", head=("class", "precision", "recall", "F1"), rows=rows
    )


def _accuracies(rounds: list[_Round], classes: int) -> Iterator[Series]:
    steps = np.array([each.step for each in rounds])
    shares = np.full((len(rounds), classes), np.nan)
    for place, each in enumerate(rounds):
        labels, guess = _classes_of(each)
        for label in range(classes):
            members = labels == label
            if members.any():
                shares[place, label] = (guess[members] == label).mean()
    for label in range(classes):
        yield Series(f"class {label}", "TRAIN", steps, shares[:, label])


def _roc(labels: NDArray[np.int64], scores: Array) -> tuple[Array, Array]:
    """Shares of negatives and of positives at or above each score, falling; ties are one point."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(labels[order] == 1)[ends]
    wrong = 1 + ends - found
    return np.append(0, wrong / max(wrong[-1], 1)), np.append(0, found / max(found[-1], 1))


def _of_regression(rounds: list[_Round]) -> Iterator[Part]:
    last = rounds[-1]
    counts, edges = np.histogram(last.labels, bins=_BINS)
    spans = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    yield Part("Labels", "Samples in ten spans of the label.", charts.bars(spans, counts, "samples"))
    residuals = last.labels - last.predictions.reshape(len(last.labels), -1)[:, 0]
    counts, edges = np.histogram(residuals, bins=2 * _BINS)
    chart = charts.bars([f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)], counts, "samples")
    text = f"Label less prediction in round {last.step}: mean {residuals.mean():.4g}, deviation {residuals.std():.4g}."
    yield Part("Residuals", text, chart)
    bins = np.clip(np.digitize(last.labels, np.histogram_bin_edges(last.labels, _BINS)[1:-1]), 0, _BINS - 1)
    steps = np.array([each.step for each in rounds])
    errors = np.full((len(rounds), _BINS), np.nan)
    for place, each in enumerate(rounds):
        if len(each.labels) == len(bins):
            error = np.abs(each.labels - each.predictions.reshape(len(each.labels), -1)[:, 0])
            for span in np.unique(bins):
                errors[place, span] = error[bins == span].mean()
    series = [Series(spans[span], "TRAIN", steps, errors[:, span]) for span in np.unique(bins)]
    yield Part(
        "Error by label",
        "Mean absolute error in ten spans of the label.",
        charts.lines(series, "absolute error", height=380),
    )
