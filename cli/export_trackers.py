"""A run for experiment trackers, written by their own clients: an offline run of W&B, a file store of MLflow."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stepwatch.cli.export_tables import make_empty
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.labels import read_labels
from stepwatch.probe.store.reader import Trace

_STEPS = 1000  # of a tensor's curve
_BATCH = 1000  # metrics that MLflow takes at once
_PARAMETER = 500  # characters of a parameter that it takes in every version
_TRAINING = ("TRAIN", "GLOBAL")
_NOT_IN_MLFLOW = re.compile(r"[^\w\-. /:]")


class _Moment(NamedTuple):
    step: int
    time_ns: int
    values: dict[str, float]


def export_wandb(trace: Trace, destination: Path, ranks: Sequence[int] | None = None) -> int:
    """Write an offline run of Weights & Biases into a new directory; ``wandb sync`` uploads it.

    Scalars keep their names, those of evaluations behind ``eval/``; of each tensor there is ``rms/NAME``, its root mean
    square, at no more than 1,000 of the saved steps. Tags, note and configuration are the run's.

    Args:
        trace: the run.
        destination: made, or empty.
        ranks: the rank that is written; the first where None.

    Returns:
        number of values.

    Raises:
        TraceError: the destination holds something, or several ranks.
        ImportError: wandb is not installed.
    """
    try:
        import wandb
    except ModuleNotFoundError:
        raise ImportError("an offline run of W&B needs its client: pip install 'stepwatch[wandb]'") from None
    rank = _one(trace, ranks)
    make_empty(destination)
    labels = read_labels(trace.source)
    settings = wandb.Settings(
        mode="offline", silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True
    )
    count = 0
    with wandb.init(
        dir=destination,
        project="stepwatch",
        name=trace.info.job_name,
        tags=list(labels.tags),
        notes=labels.note or None,
        config={**trace.info.config, "command": list(trace.info.command), "versions": trace.info.versions},
        settings=settings,
    ) as run:
        for moment in _moments(trace, rank):
            run.log(moment.values, step=moment.step)
            count += len(moment.values)
    return count


def export_mlflow(trace: Trace, destination: Path, ranks: Sequence[int] | None = None) -> int:
    """Write a run into a new file store of MLflow; ``mlflow ui --backend-store-uri DESTINATION`` shows it.

    As :func:`export_wandb`, with the same names; ``_`` stands for what MLflow does not take in one.
    """
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag
    except ModuleNotFoundError:
        raise ImportError("a store of MLflow needs its client: pip install 'stepwatch[mlflow]'") from None
    rank = _one(trace, ranks)
    make_empty(destination)
    client = MlflowClient(tracking_uri=destination.absolute().as_uri())
    labels = read_labels(trace.source)
    begun = trace.info.start_ns // 10**6
    run = client.create_run(client.create_experiment("stepwatch"), begun, run_name=trace.info.job_name).info.run_id
    parameters = {"command": " ".join(trace.info.command), **trace.info.config}
    spelled = {name: text if isinstance(text, str) else json.dumps(text) for name, text in parameters.items()}
    params = [Param(name, text[:_PARAMETER]) for name, text in spelled.items()]
    tags = [RunTag(*tag.split("=", 1)) if "=" in tag else RunTag(tag, "") for tag in labels.tags]
    tags += [RunTag("mlflow.note.content", labels.note)] if labels.note else []
    client.log_batch(run, params=params, tags=tags)
    count, last_ms = 0, begun
    metrics = (
        Metric(_NOT_IN_MLFLOW.sub("_", name), value, moment.time_ns // 10**6, moment.step)
        for moment in _moments(trace, rank)
        for name, value in moment.values.items()
    )
    while batch := list(itertools.islice(metrics, _BATCH)):
        client.log_batch(run, metrics=batch)
        count, last_ms = count + len(batch), batch[-1].timestamp
    status = {"finished": "FINISHED", "live": "RUNNING"}.get(trace.status(), "FAILED")
    if status != "RUNNING":
        client.set_terminated(run, status, last_ms)
    return count


def _one(trace: Trace, ranks: Sequence[int] | None) -> int:
    if ranks and len(ranks) > 1:
        raise TraceError(f"got the ranks {', '.join(map(str, ranks))}; expected one, which is a run there")
    return ranks[0] if ranks else next(iter(trace.ranks), 0)


def _moments(trace: Trace, rank: int) -> Iterator[_Moment]:
    """All values of a step, by step."""
    scalars = trace.table("scalars", columns=["step", "time_ns", "mode", "name", "value"], ranks=[rank])
    prefix = pc.if_else(pc.equal(scalars["mode"], "EVAL"), "eval/", "")
    names = pc.binary_join_element_wise(prefix, scalars["name"], "")
    rows = [
        pa.table({"step": scalars["step"], "time_ns": scalars["time_ns"], "name": names, "value": scalars["value"]})
    ]
    saved = np.unique(trace.table("stats", columns=["step"], ranks=[rank], modes=_TRAINING)["step"].to_numpy())
    kept = pa.array(saved[np.linspace(0, len(saved) - 1, min(len(saved), _STEPS)).astype(int)])
    stats = trace.table("stats", columns=["step", "time_ns", "name", "numel", "l2"], ranks=[rank], modes=_TRAINING)
    stats = stats.filter(pc.is_in(stats["step"], kept))
    rms = pc.divide(stats["l2"], pc.sqrt(pc.max_element_wise(stats["numel"], 1)))
    names = pc.binary_join_element_wise("rms/", stats["name"], "")
    rows.append(pa.table({"step": stats["step"], "time_ns": stats["time_ns"], "name": names, "value": rms}))
    every = pa.concat_tables(rows).sort_by("step")
    cells = (row for batch in every.to_batches() for row in zip(*(c.to_pylist() for c in batch.columns), strict=True))
    for step, group in itertools.groupby(cells, key=lambda row: row[0]):
        members = list(group)
        yield _Moment(step, members[0][1], {name: value for _, _, name, value in members})
