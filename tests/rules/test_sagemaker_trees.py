"""XGBoost, really trained and recorded, and the rules of SageMaker about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from stepwatch.cli.main import main
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import Status
from stepwatch.rules.replay import analyze
from tests.rules.sagemaker_runs import fires_at, judge

xgboost = pytest.importorskip("xgboost")

from stepwatch.probe.integrations.xgboost import StepwatchCallback  # noqa: E402


def table(rows: int = 400, features: int = 6, weights: tuple[float, ...] = (1, 1, 1, 1, 1, 1), seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features))
    return xgboost.DMatrix(x, (x @ np.array(weights) + rng.normal(size=rows) * 0.3 > 0).astype(int))


def boost(
    run: Path, *, rounds: int = 8, train: Any = None, callback: dict[str, Any] | None = None, **parameters: Any
) -> Any:
    parameters = {
        "objective": "binary:logistic",
        "max_depth": 3,
        "nthread": 1,
        "eval_metric": ["auc", "logloss"],
        **parameters,
    }
    parameters = {name: value for name, value in parameters.items() if value is not None}
    train, validation = train or table(), table(seed=1)
    return xgboost.train(
        parameters,
        train,
        rounds,
        evals=[(train, "train"), (validation, "validation")],
        callbacks=[StepwatchCallback(run, **{"data": validation, **(callback or {})})],
        verbose_eval=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    boost(path, callback={"save_interval": 2})
    return path


def test_what_is_recorded(run: Path) -> None:
    trace = Trace(run)
    end = trace.end(0)
    assert end is not None and (end.status, end.last_step) == ("finished", 8)
    assert trace.info.config["xgboost"]["objective"]["name"] == "binary:logistic"
    scalars = trace.table("scalars", columns=["step", "name", "value"]).to_pandas()
    by_name = {name: rows["value"].to_numpy() for name, rows in scalars.groupby("name")}
    assert len(by_name["train-auc"]) == len(by_name["validation-logloss"]) == 8
    assert (by_name["train-loss"] == by_name["train-logloss"]).all() and (np.diff(by_name["train-loss"]) < 0).all()
    assert {f"feature_importance/{kind}/f0" for kind in ("weight", "gain", "cover")} <= by_name.keys()
    values = trace.table("values", columns=["step", "name", "shape"]).to_pandas()
    assert sorted(values["step"].unique()) == [0, 2, 4, 6]
    shapes = dict(zip(values["name"], values["shape"].map(list), strict=True))
    assert shapes["labels"] == shapes["predictions"] == [400] and {"trees/Node", "trees/Gain"} <= shapes.keys()


def test_tree_depth(tmp_path: Path, run: Path) -> None:
    assert fires_at(run, "TreeDepth") is None
    boost(tmp_path / "four", max_depth=4)
    assert fires_at(tmp_path / "four", "TreeDepth") is None
    boost(tmp_path / "deep", max_depth=100, min_child_weight=0, reg_lambda=0)
    finding = judge(tmp_path / "deep", "TreeDepth").findings[0]
    assert finding.first_step == 0 and finding.value > 4 and finding.tensors == ("trees/Node",)
    assert fires_at(run, "TreeDepth", depth="1") == 0


def test_feature_importance_overweight(tmp_path: Path, run: Path) -> None:
    assert fires_at(run, "FeatureImportanceOverweight") is None
    boost(tmp_path / "leak", train=table(weights=(50, 0.1, 0.1, 0.1, 0.1, 0.1)))
    gain = {"tensor_regex": "feature_importance/total_gain", "nfeatures": "1"}
    finding = judge(tmp_path / "leak", "FeatureImportanceOverweight", **gain).findings[0]
    assert finding.value > 0.8 and finding.tensors == ("feature_importance/total_gain/f0",)
    assert fires_at(run, "FeatureImportanceOverweight", **gain) is None
    few = judge(run, "FeatureImportanceOverweight", nfeatures="6").findings[0]
    assert few.value == 1


def test_rules_that_are_not_about_trees(run: Path) -> None:
    predictions = {"samples": "400", "labels_regex": "^labels", "predictions_regex": "^predictions"}
    assert fires_at(run, "ClassImbalance", **predictions) is None
    assert fires_at(run, "ClassImbalance", threshold_misprediction="0.01", **predictions) is not None
    assert fires_at(run, "Confusion", min_diag="0.2", max_off_diag="0.8") is None
    assert fires_at(run, "LossNotDecreasing", num_steps="2") is None
    assert fires_at(run, "Overfit", ratio_threshold="0.5") is None


def test_overfit_of_trees(tmp_path: Path) -> None:
    boost(tmp_path / "run", rounds=40, train=table(rows=40), max_depth=6, eta=0.5)
    assert fires_at(tmp_path / "run", "Overfit", ratio_threshold="0.5") is not None


def test_create_xgboost_report_finds_nothing(tmp_path: Path, run: Path) -> None:
    assert judge(run, "CreateXgboostReport").status is Status.NO_ISSUES_FOUND
    boost(tmp_path / "run", callback={"data": None})
    missing = judge(tmp_path / "run", "CreateXgboostReport").coverage.missing
    assert missing == ("no labels were recorded", "no predictions were recorded")


def test_analyze_writes_the_report_of_create_xgboost_report(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    boost(tmp_path / "run", rounds=4)
    arguments = ["analyze", str(tmp_path / "run"), "--rules", "CreateXgboostReport", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rules"][0]["status"] == "NoIssuesFound"
    report = tmp_path / "run" / "rule-output" / "CreateXgboostReport" / "xgboost_report.html"
    assert f"wrote {report}" in done.stderr
    page = report.read_text()
    assert all(part in page for part in ("Confusion", "Feature importance by gain", "Loss", "ROC"))
    before = report.stat().st_mtime_ns
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert report.stat().st_mtime_ns > before
    report.unlink()
    report.parent.rmdir()
    report.parent.write_text("in the way")
    failed = CliRunner().invoke(main, arguments)
    assert failed.exit_code == 2
    assert len(failed.stderr.strip().splitlines()) == 1 and str(report.parent) in failed.stderr


def test_a_rule_stops_the_training(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: [{rule: sagemaker.TreeDepth, parameters: {depth: 1}}]")
    model = boost(tmp_path / "run", rounds=100_000, callback={"rules": str(rules), "actions": ["stop"]})
    rounds = model.num_boosted_rounds()
    end = Trace(tmp_path / "run").end(0)
    assert (
        end is not None and end.status == "stopped" and "TreeDepth" in end.reason and end.last_step == rounds < 100_000
    )
    recorded = Trace(tmp_path / "run").findings()
    offline = analyze(Trace(tmp_path / "run"), configure([str(rules)])).findings
    assert [row["finding_id"] for row in recorded] == [finding.id for finding in offline]


def test_linear_boosters_estimators_and_continued_training(tmp_path: Path) -> None:
    boost(tmp_path / "linear", booster="gblinear", max_depth=None)
    assert judge(tmp_path / "linear", "TreeDepth").status is Status.STOPPED
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 4)), rng.integers(0, 3, 200)
    estimator = xgboost.XGBClassifier(n_estimators=5, callbacks=[StepwatchCallback(tmp_path / "estimator")])
    estimator.fit(x, y, eval_set=[(x, y)], verbose=False)
    assert len(Trace(tmp_path / "estimator").table("steps")) == 5
    first = boost(tmp_path / "more", rounds=4)
    data = table()
    again = StepwatchCallback(tmp_path / "more")
    more = {"xgb_model": first, "evals": [(data, "train")], "callbacks": [again], "verbose_eval": False}
    xgboost.train({"objective": "binary:logistic"}, data, 3, **more)
    assert Trace(tmp_path / "more").table("steps")["step"].to_pylist() == list(range(7))


@pytest.mark.parametrize(
    ("options", "said"), [({"save_interval": 0}, "save_interval is 0"), ({"actions": ["stop"]}, "without rules")]
)
def test_wrong_arguments_are_named(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        StepwatchCallback(tmp_path / "run", **options)
