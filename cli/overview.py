"""How a run stands, in one line of a list."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from stepwatch.probe.store.labels import is_baseline, read_labels
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import json_tree
from stepwatch.rules.step import is_loss

if TYPE_CHECKING:
    from stepwatch.rules.compare.objective import Objective, Standing


@dataclass(frozen=True)
class Overview:
    """How a run stands.

    Attributes:
        run: its directory, as the list names it.
        job, status, started_ns: of run.json, and :meth:`Trace.status`.
        step: the last step recorded; None where there is none.
        loss: the last value of a training loss.
        findings: names of the rules that found something while it ran.
        tags, note: what people say of it.
        baseline: whether the others in its directory are held against it.
        version: another one whenever the run has changed.
        error: why it cannot be read; then nothing else is known.
    """

    run: str
    job: str = ""
    status: str = "unreadable"
    started_ns: int = 0
    step: int | None = None
    loss: float | None = None
    findings: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    note: str = ""
    baseline: bool = False
    version: str = ""
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """For pages and programs."""
        content: dict[str, Any] = json_tree(asdict(self))
        return content


def overview(path: Path, name: str, version: str = "") -> Overview:
    """How the run in a directory stands; one that cannot be read stands with the reason."""
    try:
        trace = Trace(path)
        labels = read_labels(path)
        steps = trace.table("steps", columns=["step"], ranks=trace.ranks[:1])["step"]
        return Overview(
            run=name,
            job=trace.info.job_name,
            status=trace.status(),
            started_ns=trace.info.start_ns,
            step=pc.max(steps).as_py(),
            loss=_last_loss(trace),
            findings=tuple(dict.fromkeys(row["rule"] for row in trace.findings())),
            tags=labels.tags,
            note=labels.note,
            baseline=is_baseline(path),
            version=version,
        )
    except (ValueError, OSError) as error:
        return Overview(run=name, version=version, error=str(error))


def _last_loss(trace: Trace) -> float | None:
    rows = trace.table("scalars", columns=["name", "step", "value"], ranks=trace.ranks[:1], modes=["TRAIN", "GLOBAL"])
    losses = [name for name in pc.unique(rows["name"]).to_pylist() if is_loss(name)]
    rows = rows.filter(pc.is_in(rows["name"], pa.array(losses, pa.string())))
    if not rows.num_rows:
        return None
    at = pc.index(rows["step"], pc.max(rows["step"])).as_py()
    return float(rows["value"][at].as_py())


def standing_of(path: Path, name: str, wanted: str | None) -> tuple[Objective, Standing] | None:
    """How a run stands by a scalar; None where it has not recorded it, or cannot be read.

    Args:
        path, name: the run's directory, and how the list names it.
        wanted: the scalar, as :func:`stepwatch.rules.compare.objective.choose` takes it.
    """
    from stepwatch.rules.compare.objective import choose, series_of, standing

    try:
        series = series_of(Trace(path))
        objective = choose(wanted, [series])
    except (ValueError, OSError):
        return None
    if objective is None:
        return None
    return objective, standing(name, series[objective.name, objective.mode], objective.goal)
