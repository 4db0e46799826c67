"""How the verdicts of many runs look in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stepwatch.rules.diagnosis import diagnose
from stepwatch.rules.finding import Severity
from stepwatch.rules.fleet import Judged, summarise


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
    if summary.wasted_hours:
        wasted, whole = _duration(summary.wasted_hours * 3600), _duration(summary.hours * 3600)
        share = summary.wasted_hours / summary.hours
        out.print(f"{wasted} of {whole} ({share:.0%}) went by after an error was certain")
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


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
