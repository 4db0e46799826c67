"""The report's parts about steps that torch.profiler recorded, and about ranks that stood still."""

from __future__ import annotations

from typing import Any

from stepwatch.cli.profiles import (
    Table,
    device_sentences,
    gap_table,
    heading,
    kernel_table,
    memory_sentences,
    operator_table,
    origin,
    step_table,
    use_table,
)
from stepwatch.cli.report.boosting import Part
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.kineto.summary import Summary
from stepwatch.probe.store.profiles import Profile, profiles_of
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.stacks import script_threads

_ROWS = 12
_RANKS = 64


def profiled_parts(trace: Trace) -> list[Part]:
    """What the latest profile tells, of its lowest rank in detail; empty where no step was profiled."""
    try:
        there = profiles_of(trace.path)
        latest = [profile for profile in there if profile.step == there[-1].step][:_RANKS]
        summaries = [profile.summary() for profile in latest]
    except TraceError as error:
        return [Part("Profile", f"It cannot be shown: {error}.", wide=True)]
    if not latest:
        return []
    parts = _parts(latest[0], summaries[0])
    table = use_table(summaries)
    if len(summaries) > 1 and table[1]:
        text = "Shares of each device's time. A rank that the others wait for communicates least."
        parts.insert(1, _part("Devices of all ranks", text, table))
    return parts


def recorded_stacks(trace: Trace) -> list[dict[str, Any]]:
    """Of each hang that was found, the stacks of the ranks that stood still."""
    return [
        {"message": row["message"], "rank": rank, "text": "\n\n".join(script_threads(text)) or text}
        for row in trace.findings()
        for rank, text in dict(row["evidence"].get("stacks") or {}).items()
        if text
    ]


def _parts(profile: Profile, summary: Summary) -> list[Part]:
    where = heading(profile)
    sentences = [origin(profile), *device_sentences(summary), *memory_sentences(summary), "times are in milliseconds"]
    steps = " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences)
    parts = [
        _part(f"Steps of {where}", steps, step_table(summary, _ROWS)),
        _part(
            "Operators by self time",
            f"Of {where}.",
            operator_table(summary.operators[:_ROWS], summary.operators_ns),
        ),
    ]
    if summary.kernels:
        parts += [
            _part("On the devices", f"Of {where}.", kernel_table(summary, _ROWS)),
            _part("Longest gaps of the devices", f"Of {where}.", gap_table(summary)),
        ]
    return [part for part in parts if part.rows or part.title.startswith("Steps")]


def _part(title: str, text: str, table: Table) -> Part:
    head, rows = table
    return Part(title, text, head=head, rows=rows, wide=True)
