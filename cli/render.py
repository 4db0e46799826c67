"""How verdicts and findings look in the terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stepwatch.rules.diagnosis import Diagnosis, diagnose
from stepwatch.rules.finding import Finding, RuleResult, Severity, Status, json_tree

if TYPE_CHECKING:
    from stepwatch.probe.store.labels import Labels
    from stepwatch.rules.replay import Analysis
    from stepwatch.rules.whatif import Change

_SEVERITY_STYLE = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}
_PIPE_WIDTH = 160
_NARROW = 70
_BARS = "▁▂▃▄▅▆▇█"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command, instead of exiting with the status for issues found."""
        raise BrokenPipeError


def console(file: TextIO | None = None) -> Console:
    """The terminal, or what stands for it; plain where it is a pipe or NO_COLOR is set."""
    file = file or sys.stdout
    width = None if file.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return _Console(file=file, highlight=False, width=width)


def print_json(content: Any) -> None:
    """Print valid JSON: numbers that are not finite become strings."""
    print(json.dumps(json_tree(content), indent=2, allow_nan=False))


def print_hook_cost(out: Console, hook: dict[str, Any]) -> None:
    """One line: what recording cost, and how often it saved."""
    if hook["share_of_step"] is None:
        return
    cost = f"recording took {hook['microseconds_per_step']:.0f} us a step ({hook['share_of_step']:.1%})"
    saved = f"tensors saved at {hook['saved_steps']} steps"
    if hook["interval"] is not None:
        every = "every step" if hook["interval"] == 1 else f"every {hook['interval']} steps"
        saved += f", at last {every}, chosen for a budget of {hook['overhead_budget']:.1%}"
    out.print(f"{cost}; {saved}", markup=False)


def labels_line(labels: Labels, *, baseline: bool) -> str:
    """What people say of a run, in a line; "" where they say nothing."""
    parts = ["baseline"] if baseline else []
    parts += [" ".join(f"#{tag}" for tag in labels.tags)] if labels.tags else []
    return ", ".join(parts) + (f"{': ' if parts else ''}{' '.join(labels.note.split())}" if labels.note else "")


def verdict_text(result: RuleResult) -> Text:
    """A rule's verdict in a word or two; never green where it could not decide."""
    if result.status is Status.ISSUES_FOUND:
        worst = max(result.findings, key=lambda f: list(_SEVERITY_STYLE).index(f.severity) * -1)
        return Text("issue found", _SEVERITY_STYLE[worst.severity])
    if result.status is Status.ERROR:
        return Text("rule failed", "bold red")
    if not result.coverage.decided:
        return Text("not decided", "dim")
    if result.status is Status.IN_PROGRESS:
        return Text("nothing yet", "green")
    return Text("no issue", "green")


def looked_at(result: RuleResult) -> str:
    """What the rule looked at, or what it lacked."""
    coverage = result.coverage
    if result.detail:
        return result.detail
    if coverage.missing:
        return "; ".join(coverage.missing)
    text = f"{coverage.steps} steps ({coverage.first_step} to {coverage.last_step})"
    if not coverage.steps:
        text = "samples of the machine"
    if coverage.margin is not None and result.status is not Status.ISSUES_FOUND:
        text += f", came {100 * min(coverage.margin, 1.0):.0f} % of the way to firing"
    return text


def verdict_table(results: Sequence[RuleResult], width: int) -> RenderableType:
    """One line per rule; two where the terminal is narrow."""
    if width < _NARROW:
        return Group(*(line for result in results for line in _verdict_lines(result)))
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("rule", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("looked at", style="dim")
    for result in results:
        table.add_row(result.rule, verdict_text(result), Text(looked_at(result)))
    return table


def _verdict_lines(result: RuleResult) -> tuple[RenderableType, RenderableType]:
    head = Text.assemble(result.rule, ": ", verdict_text(result))
    return head, Padding(Text(looked_at(result), "dim"), (0, 0, 0, 2))


def finding_block(finding: Finding) -> RenderableType:
    """A finding: what, on what evidence, at which step, what to try."""
    head = Text()
    head.append(finding.severity.value.upper(), _SEVERITY_STYLE[finding.severity])
    where = f"step {finding.first_step}"
    if finding.last_step != finding.first_step:
        where += f", certain at {finding.last_step}"
    head.append(f" {finding.rule}", "bold")
    head.append(f" ({where}{f', rank {finding.rank}' if finding.rank else ''})", "dim")
    lines = [head, Text(finding.message)]
    evidence = f"measured {finding.value:.4g}, limit {finding.threshold:.4g}"
    if finding.tensors:
        shown = ", ".join(finding.tensors[:3]) + ("..." if len(finding.tensors) > 3 else "")
        evidence += f", in {shown}"
    lines.append(Text(f"evidence: {evidence}", "dim"))
    lines.append(Text(f"try: {finding.suggestion}"))
    if finding.docs:
        lines.append(Text(f"more: {finding.docs}", "dim"))
    return Group(lines[0], *(Padding(line, (0, 0, 0, 2)) for line in lines[1:]))


def print_changes(out: Console, changed: Sequence[Change]) -> None:
    """What other parameters changed: when each rule fires, and when it did before."""
    for number, change in enumerate(changed):
        if number == 0:
            out.print("\nWhat --set changes", style="bold")
        after, before = _fires(change.after), _fires(change.before)
        same = "as before" if after == before else f"before: {before}"
        out.print(f"{change.rule}: {after} ({same})", markup=False)


def _fires(findings: Sequence[Finding]) -> str:
    listed = [f"{finding.severity.value} at step {finding.last_step}" for finding in findings]
    return ", ".join(listed) if listed else "nothing found"


def story_block(story: Diagnosis) -> RenderableType:
    """A likely root cause, and the findings that it explains."""
    lines: list[RenderableType] = [finding_block(story.cause)]
    if story.explains:
        text = Text(f"likely the cause of {', '.join(story.explains)} as well:", "bold")
        lines.append(Padding(text, (0, 0, 0, 2)))
    lines += [Padding(finding_block(finding), (0, 0, 0, 4)) for finding in story.consequences]
    return Group(*lines)


def print_analysis(out: Console, run: Path | str, analysis: Analysis) -> None:
    """All of it: verdicts, findings, what was not recorded."""
    found = len(analysis.findings)
    what = "no issue found" if not found else f"{found} issue{'s' if found > 1 else ''} found"
    if not found and not any(result.coverage.decided for result in analysis.results):
        what = "nothing could be decided"
    out.print(Text(f"{run}: {what}{' so far (the run is live)' if analysis.live else ''}", "bold"))
    out.print(verdict_table(analysis.results, out.width))
    for story in diagnose(analysis.findings):
        out.print()
        out.print(story_block(story))
    print_reservations(out, analysis.notes, analysis.warnings, analysis.counters)


def print_reservations(out: Console, notes: Sequence[str], warnings: Sequence[str], counters: dict[str, int]) -> None:
    """What was not recorded or could not be read."""
    lines = [f"note: {note}" for note in notes] + [f"warning: {warning}" for warning in warnings]
    lines += [f"note: {value} {name.replace('_', ' ')}" for name, value in counters.items() if value]
    if lines:
        out.print()
        for line in lines:
            out.print(Text(line, "yellow"))


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A series as a line of bars; gaps where it is not finite."""
    if not values:
        return ""
    step = max(1, len(values) // width)
    sampled = [values[i] for i in range(0, len(values), step)][-width:]
    finite = [v for v in sampled if v == v and abs(v) != float("inf")]
    if not finite:
        return "x" * len(sampled)
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join(_BARS[int((v - low) / span * (len(_BARS) - 1))] if v in finite else "x" for v in sampled)
