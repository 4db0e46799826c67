"""``stepwatch analyze``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH

if TYPE_CHECKING:
    from stepwatch.probe.store.reader import Trace
    from stepwatch.rules.catalogue import RuleSpec
    from stepwatch.rules.replay import Analysis

_POLL_SECONDS = 0.2


@click.command("analyze")
@click.argument("runs", metavar="RUN...", nargs=-1, type=RUN_PATH)
@click.option(
    "--scalars",
    "logs",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Judge a log of scalars instead of a run: CSV, JSONL, trainer_state.json, TensorBoard event files.",
)
@click.option(
    "--rules",
    "rules",
    multiple=True,
    metavar="NAMES",
    help="Rules or sets, comma-separated; or file.py:Class.",
)
@click.option("--set", "settings", multiple=True, metavar="RULE.PARAM=VALUE", help="Set a rule's parameter.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or a list for several runs.")
@click.option("--follow", is_flag=True, help="Judge a live run to its end, then print.")
@errors.one_line_errors
def command(
    runs: tuple[Path, ...],
    logs: tuple[Path, ...],
    rules: tuple[str, ...],
    settings: tuple[str, ...],
    as_json: bool,
    follow: bool,
) -> None:
    """Evaluate rules over finished or live runs, or over logs of scalars.

    Exit status: 0 nothing found, 1 issues found, 2 a run that cannot be read, 3 a rule failed to run (and
    nothing was found).
    """
    from stepwatch.cli.render import console, print_analysis, print_json
    from stepwatch.probe.store.errors import TraceError
    from stepwatch.probe.store.reader import Trace
    from stepwatch.rules.catalogue import configure
    from stepwatch.rules.scalar_logs import judge_log, read_log

    if not runs and not logs:
        errors.fail("got no run; expected one or more, or --scalars FILE; see stepwatch analyze --help")
    specs = configure(list(rules) or None, list(settings))
    errors.print_warnings_with_the_result()
    analyses: dict[Path, Analysis] = {}
    unreadable: list[str] = []
    out = console()
    for run in dict.fromkeys([*runs, *logs]):
        try:
            analysis = judge_log(read_log(run), specs) if run in logs else _judge(Trace(run), specs, follow)
        except (TraceError, OSError) as error:
            unreadable.append(errors.spell(error))
            continue
        if not as_json:
            if analyses:
                out.print()
            print_analysis(out, run, analysis)
        analyses[run] = analysis
    if as_json and analyses:
        printed = [_to_json(run, analysis) for run, analysis in analyses.items()]
        print_json(printed if len({*runs, *logs}) > 1 else printed[0])
    for message in unreadable:
        click.echo(f"stepwatch: {message}", err=True)
    raise SystemExit(errors.UNUSABLE if unreadable else _status(list(analyses.values())))


def _judge(trace: Trace, specs: Sequence[RuleSpec], follow: bool) -> Analysis:
    from stepwatch.rules.replay import LiveAnalysis, analyze

    if not follow:
        return analyze(trace, specs)
    judged = LiveAnalysis(trace, specs)
    while trace.live():
        judged.poll()
        time.sleep(_POLL_SECONDS)
    judged.conclude()
    return judged.analysis(live=False)


def _to_json(run: Path, analysis: Analysis) -> dict[str, Any]:
    from stepwatch.rules.diagnosis import diagnose

    return {
        "run": str(run),
        "live": analysis.live,
        "diagnoses": [story.to_json() for story in diagnose(analysis.findings)],
        "rules": [result.to_json() for result in analysis.results],
        "notes": analysis.notes,
        "warnings": analysis.warnings,
        "counters": analysis.counters,
    }


def _status(analyses: list[Analysis]) -> int:
    from stepwatch.rules.finding import Status

    if any(analysis.findings for analysis in analyses):
        return errors.ISSUES_FOUND
    failed = any(result.status is Status.ERROR for analysis in analyses for result in analysis.results)
    return errors.RULE_FAILED if failed else errors.NOTHING_FOUND
