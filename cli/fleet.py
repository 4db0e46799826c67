"""How the verdicts of many runs look in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stepwatch.rules.diagnosis import diagnose
from stepwatch.rules.finding import Severity
from stepwatch.rules.fleet.judged import Judged
from stepwatch.rules.fleet.summary import group, summarise


def print_lines(out: Console, judged: Sequence[Judged]) -> None:
    """A line per run: its likely root cause, and how long it went on after that was certain."""
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "what", "at step", "wasted"):
        table.add_column(heading, justify="left" if heading in ("run", "what") else "right", overflow="fold")
    for each in judged:
        if each.analysis is None:
            table.add_row(Text(str(each.run)), Text("could not be judged", "bold red"), "", "")
            continue
        stories = diagnose(each.analysis.findings)
        if not stories:
            decided = any(result.coverage.decided for result in each.analysis.results)
            verdict = Text("no issue", "green") if decided else Text("not decided", "dim")
            table.add_row(Text(str(each.run)), verdict, "", "")
            continue
        cause = stories[0].cause
        more = f" and {len(stories) - 1} more" if len(stories) > 1 else ""
        style = "bold red" if cause.severity is Severity.ERROR else "yellow"
        wasted = _duration(each.wasted_seconds) if each.wasted_seconds else ""
        table.add_row(Text(str(each.run)), Text(f"{cause.rule}{more}", style), str(cause.first_step), wasted)
    out.print(table)


def print_summary(out: Console, judged: Sequence[Judged]) -> None:
    """How many runs had which problem, and what that cost."""
    summary = summarise(judged)
    out.print()
    parts = [f"{summary.runs} runs: {summary.with_issues} with issues"]
    parts += [f"{summary.undecided} not decided"] if summary.undecided else []
    parts += [f"{summary.failed} that could not be judged"] if summary.failed else []
    out.print(Text(", ".join(parts), "bold"))
    if summary.lost_hours:
        lost, whole = _duration(summary.lost_hours * 3600), _duration(summary.hours * 3600)
        certain = _duration(summary.wasted_hours * 3600)
        share = summary.lost_hours / summary.hours
        out.print(f"{lost} of {whole} ({share:.0%}) went by after an error began, {certain} after it was certain")
    if not summary.problems:
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("problem", "runs", "share", "begins at step (median)", "for example"):
        table.add_column(heading, justify="left" if heading in ("problem", "for example") else "right", overflow="fold")
    for problem in summary.problems:
        count = len(problem.runs)
        cells = (
            problem.rule,
            str(count),
            f"{count / summary.runs:.0%}",
            f"{problem.first_step:g}",
            str(problem.runs[0]),
        )
        table.add_row(*map(Text, cells))
    out.print(table)


def print_groups(out: Console, judged: Sequence[Judged], key: str) -> None:
    """Runs by user, model or tag: how many have issues, and how much time went by after an error began."""
    table = Table(box=None, pad_edge=False)
    for heading in (key, "runs", "with issues", "time", "after an error began", "share"):
        table.add_column(Text(heading), justify="left" if heading == key else "right", overflow="fold")
    for each in group(judged, key):
        share = f"{each.lost_hours / each.hours:.0%}" if each.hours else ""
        hours = (_duration(each.hours * 3600), _duration(each.lost_hours * 3600))
        table.add_row(*map(Text, (each.name or "-", str(each.runs), str(each.with_issues), *hours, share)))
    out.print()
    out.print(table)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
