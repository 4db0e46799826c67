"""The report's part about boosted trees, of real trainings, held against scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from stepwatch.cli.report.boosting import Part, boosting_parts
from stepwatch.cli.report.page import write_report
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure

xgboost = pytest.importorskip("xgboost")

from stepwatch.probe.integrations.xgboost import StepwatchCallback  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, 6))
SCORE = X[:, :4].sum(1) + RNG.normal(size=600)


def boost(run: Path, y: Any, **parameters: Any) -> tuple[dict[str, Part], Any, Any]:
    """Parts of the report by title; labels and last predictions of the validation set."""
    train, held_out = (xgboost.DMatrix(X[part], y[part]) for part in (slice(400), slice(400, None)))
    model = xgboost.train(
        {"max_depth": 4, "nthread": 1, **parameters},
        train,
        31,
        evals=[(train, "train"), (held_out, "validation")],
        callbacks=[StepwatchCallback(run, data=held_out, save_interval=5)],
        verbose_eval=False,
    )
    parts = {part.title: part for part in boosting_parts(Trace(run), 0)}
    return parts, y[400:], model.predict(held_out)


def test_two_classes(tmp_path: Path) -> None:
    parts, labels, scores = boost(tmp_path / "run", (SCORE > 0).astype(int), objective="binary:logistic")
    assert "lowest in round" in parts["Loss"].text and "Stop early" in parts["Loss"].text
    assert parts["ROC"].text == f"Area under the curve: {metrics.roc_auc_score(labels, scores):.4f}."
    confusion = np.array([row[1:] for row in parts["Confusion"].rows], dtype=int)
    assert (confusion == metrics.confusion_matrix(labels, scores > 0.5)).all()
    assert {f"Feature importance by {kind}" for kind in ("weight", "gain", "cover")} <= parts.keys()


def test_several_classes(tmp_path: Path) -> None:
    parts, labels, scores = boost(
        tmp_path / "run", np.digitize(SCORE, [-1.5, 1.5]), objective="multi:softprob", num_class=3
    )
    for row, average in zip(parts["Precision and recall"].rows[-3:], ("micro", "macro", "weighted"), strict=True):
        expected = metrics.precision_recall_fscore_support(labels, scores.argmax(1), average=average)[:3]
        assert row == (f"all, {average}", *(f"{value:.3f}" for value in expected))
    assert "ROC" not in parts and parts["Accuracy by class"].chart is not None


def test_regression(tmp_path: Path) -> None:
    parts, labels, predictions = boost(tmp_path / "run", SCORE, objective="reg:squarederror")
    residuals = labels - predictions
    said = [float(part.split()[-1].rstrip(".")) for part in parts["Residuals"].text.split(": ")[1].split(", ")]
    assert said == pytest.approx([residuals.mean(), residuals.std()], rel=1e-3)
    assert "Confusion" not in parts and parts["Error by label"].chart is not None


def test_the_page_has_it_and_pages_of_other_runs_have_not(tmp_path: Path) -> None:
    boost(tmp_path / "run", (SCORE > 0).astype(int), objective="binary:logistic")
    page = write_report(Trace(tmp_path / "run"), tmp_path / "page.html", configure(["sagemaker"])).read_text()
    assert "Boosted trees" in page and "Feature importance by gain" in page and "Area under the curve" in page
    from tests.rules.sagemaker_runs import train

    other = write_report(
        Trace(train(tmp_path / "other", steps=3)), tmp_path / "other.html", configure(None)
    ).read_text()
    assert "Boosted trees" not in other
