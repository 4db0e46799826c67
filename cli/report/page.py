"""Puts the report together: one HTML file that needs nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepwatch.cli.profile import DEVICE_METRICS
from stepwatch.cli.render import labels_line, looked_at
from stepwatch.cli.report import charts
from stepwatch.cli.report.boosting import boosting_parts
from stepwatch.cli.report.data import Series, evidence_series, heat_map, scalar_series
from stepwatch.cli.report.document import document
from stepwatch.cli.report.history import tensor_history
from stepwatch.cli.report.layers import block_of, layer_charts, layer_data
from stepwatch.cli.report.profile import machine_parts, time_parts
from stepwatch.cli.report.profiled import profiled_parts, recorded_stacks
from stepwatch.cli.report.ranks import rank_parts
from stepwatch.cli.series import series_of
from stepwatch.cli.step_times import step_times
from stepwatch.cli.summary import state_of
from stepwatch.probe.collections import DEFAULT_COLLECTIONS, CollectionKeys
from stepwatch.probe.store.control import read_acknowledgement
from stepwatch.probe.store.labels import is_baseline, read_labels
from stepwatch.probe.store.layout import write_atomically
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.apart import Judging
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.diagnosis import Diagnosis, diagnose
from stepwatch.rules.finding import Finding, RuleResult, Severity, Status
from stepwatch.rules.learning import learning_of
from stepwatch.rules.profiler.base import spell_seconds
from stepwatch.rules.replay import Analysis

_HEATS = (
    ("gradients", "Gradients", "log10 of the root mean square of each layer's gradient"),
    ("weights", "Weights", "log10 of the root mean square of each layer's weights"),
    ("activations", "Activations", "log10 of the root mean square of each activation's output"),
)
_OTHER_CHARTS = 8
_RANKING = [Severity.ERROR, Severity.WARNING, Severity.INFO]


def write_report(trace: Trace, output: Path, specs: Sequence[RuleSpec]) -> Path:
    """Write the page about a run and return its path.

    Args:
        trace: the run, finished or live.
        output: the file; its directory must exist.
        specs: the rules to judge with.

    Raises:
        OSError: the file cannot be written.
    """
    with Judging(trace, specs) as judging:
        plots, context = _content(trace, judging)
    write_atomically(output, document("report.html", plots, context, ["layers.js"] if context["layers"] else ()))
    return output


def _content(trace: Trace, judging: Judging) -> tuple[dict[str, Any], dict[str, Any]]:
    """(charts by name, everything else that the template needs)."""
    machine = series_of(trace, list(DEVICE_METRICS))
    analysis = judging.result()
    rank = trace.ranks[0] if trace.ranks else 0
    stories = diagnose(analysis.findings)
    findings = [finding for story in stories for finding in (story.cause, *story.consequences)]
    losses, others = scalar_series(trace, rank)
    others = [line for line in others if not line.name.startswith("feature_importance/")]
    plots: dict[str, Any] = {}
    if losses:
        plots["loss"] = charts.lines(losses, "loss", findings, height=260)
    for number, finding in enumerate(findings):
        evidence = evidence_series(trace, finding)
        if evidence:
            unit = str(finding.evidence.get("unit", "value"))
            plots[f"finding{number}"] = charts.lines(evidence, unit, [finding])
    scalars = _scalar_groups(others)
    for number, (name, group) in enumerate(scalars):
        plots[f"scalar{number}"] = charts.lines(group, name, findings, height=180)
    heats, lines = [], {}
    history = tensor_history(trace, rank)
    modules = {t.name: t.module or t.name for t in history.tensors} if history is not None else {}
    for collection, title, unit in _HEATS:
        content = heat_map(history, collection) if history is not None else None
        if content is not None:
            blocks = [block_of(modules[name]) for name in content.heads]
            chart = charts.heat(content, "log10 rms", findings, blocks=blocks, name=f"heat-{collection}")
            plots[collection] = chart
            lines[collection] = content.heads
            heats.append({"key": collection, "title": title, "unit": unit, "layers": len(content.layers)})
    if history is not None:
        plots |= layer_charts()
    parts = {
        "ranks": rank_parts(trace, findings),
        "times": time_parts(trace, findings),
        "profiled": profiled_parts(trace),
        "boosting": boosting_parts(trace, rank),
        "machine": machine_parts(trace, machine, findings),
    }
    for key, members in parts.items():
        plots |= {f"{key}{number}": part.chart for number, part in enumerate(members) if part.chart is not None}
    context = {
        "title": trace.info.job_name,
        "run": str(trace.path),
        "facts": _facts(trace, step_times(trace, rank)["duration"].to_numpy()),
        "summary": _summary(trace, analysis, stories),
        "suggestion": stories[0].cause.suggestion if stories else "",
        "tone": _tone(analysis),
        "learning": learning_of(trace).sentence(),
        "rules": [_rule_row(result) for result in analysis.results],
        "findings": [_finding(number, finding, plots) for number, finding in enumerate(findings)],
        "actions": _actions(trace),
        "loss_table": [_line_row(line) for line in losses],
        "scalars": [{"key": f"scalar{i}", "name": name} for i, (name, _) in enumerate(scalars)],
        "heats": heats,
        "layers": {**layer_data(trace, rank, history, findings), "heats": lines} if history is not None else None,
        "parts": parts,
        "layer_of": modules,
        "stacks": recorded_stacks(trace),
        "recorded": _recorded(trace, rank),
        "reservations": [*analysis.notes, *analysis.warnings, *_missing(trace, bool(machine)), *_counters(analysis)],
        "lost": bool(_counters(analysis)),
        "versions": trace.info.versions,
        "config": trace.info.config,
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    return plots, context


def _facts(trace: Trace, durations: Any) -> list[tuple[str, str]]:
    info = trace.info
    ends = [end for rank in trace.ranks if (end := trace.end(rank)) is not None]
    steps = trace.table("steps", columns=["step", "time_ns"], modes=["TRAIN", "GLOBAL"])
    last = ends[0].time_ns if ends else int(max(steps["time_ns"].to_pylist(), default=info.start_ns))
    facts = [
        ("State", state_of(trace).partition(":")[0]),
        ("Started", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.start_ns / 1e9))),
        ("Duration", _spell_seconds((last - info.start_ns) / 1e9)),
        ("Training steps", str(len(np.unique(steps["step"].to_numpy())))),
    ]
    if len(durations):
        facts.append(
            (
                "Step time",
                f"{spell_seconds(float(np.median(durations)) / 1e3)} (median), "
                f"{spell_seconds(float(np.percentile(durations, 95)) / 1e3)} (p95)",
            )
        )
    labels = read_labels(trace.source)
    if said := labels_line(labels, baseline=is_baseline(trace.source)):
        facts.append(("Tags and note", said))
    facts += [("Ranks", str(info.world_size)), ("Host", info.host), ("Command", " ".join(info.command))]
    return facts


def _tone(analysis: Analysis) -> str:
    if analysis.findings:
        return "bad" if any(finding.severity is Severity.ERROR for finding in analysis.findings) else "warned"
    return "good" if any(result.coverage.decided for result in analysis.results) else "open"


def _summary(trace: Trace, analysis: Analysis, stories: list[Diagnosis]) -> list[str]:
    """What happened, in one paragraph of sentences."""
    if not stories:
        undecided = [result.rule for result in analysis.results if not result.coverage.decided]
        decided = len(analysis.results) - len(undecided)
        if not decided:
            return ["No rule could decide: see below what was missing."]
        sentences = [f"No issue was found by the {decided} rules that could decide."]
        if undecided:
            sentences.append(f"{len(undecided)} could not: {', '.join(undecided)}.")
        return sentences
    worst = stories[0]
    cause = worst.cause
    sentences = [f"{cause.rule}, from step {cause.first_step}: {cause.message}."]
    if worst.explains:
        sentences.append(f"It is likely the cause of what else was found: {', '.join(worst.explains)}.")
    if len(stories) > 1:
        others = ", ".join(dict.fromkeys(story.cause.rule for story in stories[1:]))
        sentences.append(f"Found besides: {others}.")
    for rank in trace.ranks[:1]:
        answer = read_acknowledgement(trace.path, rank)
        if answer is not None:
            kept = (
                f" after its checkpoint {answer.checkpoint} was written"
                if answer.checkpoint
                else " without a checkpoint"
            )
            sentences.append(f"The job was stopped after {answer.step} steps,{kept}.")
    return sentences


def _rule_row(result: RuleResult) -> dict[str, str]:
    if result.status is Status.ISSUES_FOUND:
        worst = min(result.findings, key=lambda f: _RANKING.index(f.severity))
        kind, verdict = worst.severity.value, "issue found"
    elif result.status is Status.ERROR:
        kind, verdict = "error", "rule failed"
    elif not result.coverage.decided:
        kind, verdict = "open", "not decided"
    else:
        kind, verdict = "good", "nothing yet" if result.status is Status.IN_PROGRESS else "no issue"
    return {"rule": result.rule, "kind": kind, "verdict": verdict, "looked_at": looked_at(result)}


def _finding(number: int, finding: Finding, plots: dict[str, Any]) -> dict[str, Any]:
    return {
        "key": f"finding{number}",
        "charted": f"finding{number}" in plots,
        "rule": finding.rule,
        "severity": finding.severity.value,
        "first": finding.first_step,
        "last": finding.last_step,
        "rank": finding.rank,
        "message": finding.message,
        "suggestion": finding.suggestion,
        "docs": finding.docs,
        "value": f"{finding.value:.4g}",
        "threshold": f"{finding.threshold:.4g}",
        "tensors": list(finding.tensors),
    }


def _actions(trace: Trace) -> list[dict[str, str]]:
    return [
        {"rule": row["rule"], "action": done["action"], "outcome": done["outcome"], "detail": done["detail"]}
        for row in trace.findings()
        for done in row["actions"]
    ]


def _scalar_groups(series: list[Series]) -> list[tuple[str, list[Series]]]:
    """Scalars that are not losses by name, those that never change left out."""
    groups: dict[str, list[Series]] = {}
    for line in series:
        if len(line.values) > 1 and np.nanmin(line.values) != np.nanmax(line.values):
            groups.setdefault(line.name, []).append(line)
    return list(groups.items())[:_OTHER_CHARTS]


def _line_row(line: Series) -> dict[str, str]:
    finite = line.values[np.isfinite(line.values)]
    best = f"{finite.min():.4g} at step {line.steps[np.nanargmin(line.values)]}" if len(finite) else "-"
    return {
        "name": line.name,
        "mode": line.mode.lower(),
        "first": f"{line.values[0]:.4g}",
        "best": best,
        "last": f"{line.values[-1]:.4g}",
        "broken": str(len(line.values) - len(finite)),
    }


def _recorded(trace: Trace, rank: int) -> list[tuple[str, str]]:
    steps = trace.table("steps", columns=["step", "saved"], ranks=[rank], modes=["TRAIN", "GLOBAL"]).to_pandas()
    saved = np.unique(steps.loc[steps["saved"].fillna(False).astype(bool), "step"].to_numpy())
    gaps = np.diff(saved)
    interval = f"every {int(np.median(gaps))} steps (median)" if len(gaps) else "-"
    collections: dict[str, int] = {}
    for tensor in trace.tensors().values():
        for name in tensor.collections:
            collections[name] = collections.get(name, 0) + 1
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(collections.items())) or "none"
    return [
        ("Tensors by collection", listed),
        ("Steps with tensors saved", f"{len(saved)} of {len(steps)}, {interval}"),
        ("Losses and scalars", "at every step"),
    ]


def _missing(trace: Trace, sampled: bool) -> Iterator[str]:
    """What a reader may look for in vain."""
    there = {name for tensor in trace.tensors().values() for name in tensor.collections}
    absent = [name for name in DEFAULT_COLLECTIONS if name not in {*there, CollectionKeys.LOSSES}]
    if absent:
        yield f"no {', '.join(absent)}: the job has none, or they were not asked for"
    if len(trace.ranks) < trace.info.world_size:
        yield f"{trace.info.world_size - len(trace.ranks)} of {trace.info.world_size} ranks"
    if not sampled:
        yield "the use of the machine"


def _counters(analysis: Analysis) -> list[str]:
    return [f"{value} {name.replace('_', ' ')}" for name, value in analysis.counters.items() if value]


def _spell_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
