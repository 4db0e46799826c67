"""XGBoost: record the training of a booster, round by round."""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from stepwatch.probe.judge import Judge
from stepwatch.probe.stopping import Stopper
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.smdebug.importing import statistics
from stepwatch.probe.store.writer import TraceWriter

if TYPE_CHECKING:
    from stepwatch.rules.actions import Action

_IMPORTANCES = ("weight", "gain", "cover", "total_gain", "total_cover")
_MAXIMISED = ("auc", "aucpr", "map", "ndcg", "pre", "interval-regression-accuracy")
_HEARING_SECONDS = 1.0


class StepwatchCallback(xgboost.callback.TrainingCallback):  # type: ignore[misc]
    """Records what ``xgboost.train``, or an estimator with ``callbacks=[...]``, does.

    A step is a boosting round. Every round has the metrics of the evaluation sets, under XGBoost's names
    (``train-rmse``); of each set the first metric that should fall is also recorded as its loss (``train-loss``,
    ``validation-loss``), by which rules about losses go. Call the sets ``train`` and ``validation``, so that rules
    know which is which.

    Rounds that are saved have besides, under the names of SageMaker Debugger, the trees of the round (``trees/Node``,
    ``trees/Gain``, ``trees/Cover``), the importance of the features that the model uses
    (``feature_importance/weight/f0``, and by gain, cover, total_gain and total_cover), and with ``data`` its
    ``labels`` and ``predictions``.

    Args:
        out_dir: the run's directory.
        data: set of which labels and predictions are recorded, usually the one for validation.
        save_interval: rounds from one that is saved to the next.
        job_name: name of the job; that of the directory by default.
        rules: names of rules or sets to judge with in this process.
        actions: what is done about findings: "stop" ends the training after the round.

    Raises:
        TraceError: the directory cannot be written.
        RuleError: a rule that does not exist.
        ValueError: ``save_interval`` is not positive, or actions without rules.
    """

    def __init__(
        self,
        out_dir: str | os.PathLike[str],
        *,
        data: xgboost.DMatrix | None = None,
        save_interval: int = 1,
        job_name: str | None = None,
        rules: str | Sequence[str] | None = None,
        actions: Sequence[str | Action] = (),
    ) -> None:
        super().__init__()
        if save_interval < 1:
            raise ValueError(f"save_interval is {save_interval}; expected 1 or more")
        if actions and rules is None:
            raise ValueError("actions were given without rules; expected rules='recommended' or a list")
        self.out_dir = Path(out_dir).expanduser()
        self._data = data
        self._save_interval = save_interval
        self._job_name = job_name or self.out_dir.resolve().name
        self._rank = xgboost.collective.get_rank()
        self._world_size = xgboost.collective.get_world_size()
        self._stopper = Stopper(self.out_dir, self._rank, self._world_size, "flag", None, _HEARING_SECONDS)
        self._judge: Judge | None = None
        if rules is not None:
            self._judge = Judge(self.out_dir, self._rank, rules, actions, self._stopper.request, lambda: None)
        self._rules = rules
        self._writer: TraceWriter | None = None
        self._names: tuple[str, ...] = ()
        self._described: set[str] = set()
        self._began_ns = 0
        self._rounds = 0

    def before_training(self, model: Any) -> Any:
        """Open the trace."""
        rules = self._rules if self._rules is None or isinstance(self._rules, str) else list(self._rules)
        self._writer = TraceWriter(
            self.out_dir,
            rank=self._rank,
            run_info={
                "job_name": self._job_name,
                "world_size": self._world_size,
                "command": [sys.executable, *sys.argv],
                "versions": {"xgboost": xgboost.__version__},
                "config": {"rules": rules, "save_interval": self._save_interval, "xgboost": _hyperparameters(model)},
            },
            on_records=self._judge.judge if self._judge else None,
        )
        self._rounds = model.num_boosted_rounds()
        self._writer.set_start_step(self._rounds)
        atexit.register(self._close, "exception", "the training did not come to its end")
        return model

    def before_iteration(self, model: Any, epoch: int, evals_log: Mapping[str, Any]) -> bool:
        """Note when the round began."""
        self._began_ns = time.time_ns()
        return False

    def after_iteration(self, model: Any, epoch: int, evals_log: Mapping[str, Any]) -> bool:
        """Record the round; True where the training is to stop."""
        assert self._writer is not None
        step = model.num_boosted_rounds() - 1
        now = time.time_ns()
        record = StepRecord(
            step,
            "TRAIN",
            step,
            time_ns=self._began_ns or now,
            scalars=_metrics(evals_log),
            timing={"duration_ns": now - self._began_ns} if self._began_ns else {},
            saved=step % self._save_interval == 0,
        )
        if record.saved:
            self._save(record, model, step)
        self._writer.submit(record)
        self._rounds = step + 1
        self._stopper.poll(self._rounds, record.timing.get("duration_ns", 0) / 1e9)
        return self._stopper.due(self._rounds)

    def after_training(self, model: Any) -> Any:
        """Close the trace."""
        if self._stopper.due(self._rounds):
            self._close("stopped", self._stopper.stop(self._rounds).reason)
        else:
            self._close("finished", "")
        return model

    def _save(self, record: StepRecord, model: Any, step: int) -> None:
        linear = _is_linear(model)
        for kind in _IMPORTANCES[:1] if linear else _IMPORTANCES:
            scores = model.get_score(importance_type=kind)
            record.scalars += [(f"feature_importance/{kind}/{name}", _number(score)) for name, score in scores.items()]
        tensors: dict[str, NDArray[Any]] = {}
        if not linear:
            trees = model[step : step + 1].trees_to_dataframe()
            tensors = {f"trees/{column}": trees[column].to_numpy() for column in ("Node", "Gain", "Cover")}
        if self._data is not None:
            predictions = model.predict(self._data, iteration_range=(0, step + 1))
            tensors |= {"labels": self._data.get_label(), "predictions": np.asarray(predictions)}
        if not tensors:
            return
        for name, value in tensors.items():
            self._describe(name, value)
        if tuple(tensors) != self._names:
            self._names = tuple(tensors)
        record.names = self._names
        record.stats = np.concatenate([statistics(value.reshape(1, -1)) for value in tensors.values()])
        record.values = list(tensors.items())

    def _describe(self, name: str, value: NDArray[Any]) -> None:
        if name in self._described:
            return
        self._described.add(name)
        info = TensorInfo(name, value.shape, str(value.dtype), (name.partition("/")[0],), order=len(self._described))
        assert self._writer is not None
        self._writer.describe(info)
        if self._judge is not None:
            self._judge.describe(info)

    def _close(self, status: str, reason: str) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.flush()
        if self._judge is not None:
            self._judge.conclude()
        writer.close(status, reason, last_step=self._rounds)
        atexit.unregister(self._close)


def _metrics(evals_log: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The latest value of every metric, and of each set its loss."""
    scalars = []
    for data, metrics in evals_log.items():
        latest = {metric: _number(values[-1]) for metric, values in metrics.items()}
        scalars += [(f"{data}-{metric}", value) for metric, value in latest.items()]
        falling = [value for metric, value in latest.items() if metric.partition("@")[0] not in _MAXIMISED]
        if falling:
            scalars.append((f"{data}-loss", falling[0]))
    return scalars


def _number(value: Any) -> float:
    """A score that may be a list of one for each class, or a mean and its deviation: the first, or the largest."""
    return float(value[0] if isinstance(value, tuple) else np.max(np.abs(value)) if isinstance(value, list) else value)


def _hyperparameters(model: Any) -> dict[str, Any]:
    return dict(json.loads(model.save_config())["learner"])


def _is_linear(model: Any) -> bool:
    """Whether the booster has no trees."""
    return bool(_hyperparameters(model)["learner_train_param"]["booster"] == "gblinear")
