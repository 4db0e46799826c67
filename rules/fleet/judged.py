"""A run and what the rules say of it, with what is counted over many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from stepwatch.probe.store.arrow import as_array
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.labels import read_labels
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.remote import is_url, local_copy
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.finding import Severity
from stepwatch.rules.replay import Analysis, analyze

Place: TypeAlias = "Path | str"
"""A run's directory, or its URL."""


@dataclass(frozen=True)
class Judged:
    """A run and what the rules say of it.

    Attributes:
        run: its directory or URL.
        analysis: the verdicts; None where it could not be judged.
        error: why it could not.
        seconds: from its first recorded step to its last.
        lost_seconds: of these, those after the step at which an error (a finding of that severity) began.
        wasted_seconds: of these, those after the step at which an error was certain.
        user: who started it, "" where that was not recorded.
        model: class of its model, "" where that cannot be told.
        tags: what it is tagged with.
    """

    run: Place
    analysis: Analysis | None
    error: str = ""
    seconds: float = 0.0
    lost_seconds: float = 0.0
    wasted_seconds: float = 0.0
    user: str = ""
    model: str = ""
    tags: tuple[str, ...] = field(default=())


def judge_run(run: Place, specs: Sequence[RuleSpec]) -> Judged:
    """Judge one run; a run that cannot be read is one with an error."""
    try:
        trace = Trace(local_copy(run) if isinstance(run, str) and is_url(run) else run)
        analysis = analyze(trace, specs)
        seconds, lost, wasted = _seconds(trace, analysis)
        return Judged(
            run,
            analysis,
            "",
            seconds,
            lost,
            wasted,
            user=_user(trace),
            model=_model(trace),
            tags=read_labels(trace.source).tags,
        )
    except (TraceError, OSError) as error:
        return Judged(run, None, str(error))
    except Exception as error:
        return Judged(run, None, f"{run}: {type(error).__name__}: {error}")


def _seconds(trace: Trace, analysis: Analysis) -> tuple[float, float, float]:
    """(in all, after an error began, after it was certain)."""
    rows = trace.table("steps", columns=["step", "time_ns"])
    if not rows.num_rows:
        return 0.0, 0.0, 0.0
    steps, times = as_array(rows["step"]), as_array(rows["time_ns"])
    errors = [finding for finding in analysis.findings if finding.severity is Severity.ERROR]

    def since(step: int) -> float:
        after = times[steps >= step]
        return float(times.max() - after.min()) / 1e9 if len(after) else 0.0

    began = since(min(finding.first_step for finding in errors)) if errors else 0.0
    certain = since(min(finding.last_step for finding in errors)) if errors else 0.0
    return float(np.ptp(times)) / 1e9, began, certain


def _user(trace: Trace) -> str:
    entries = [entry for rank in trace.ranks[:1] for entry in trace.attempts(rank).entries]
    return str(entries[-1].get("user", "")) if entries else ""


def _model(trace: Trace) -> str:
    """The class of the root module, with which names of its tensors begin: ``Net_conv1.weight`` of module ``conv1``."""
    for info in trace.tensors().values():
        before, found, _ = info.name.removeprefix("gradient/").partition(f"_{info.module}.")
        if info.module and found and before:
            return before
    return ""
