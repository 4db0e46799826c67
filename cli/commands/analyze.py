"""``stepwatch analyze``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepwatch.cli import errors
from stepwatch.cli.progress import progress
from stepwatch.cli.runs import RUN_PATH, complete_directories

if TYPE_CHECKING:
    from rich.console import Console

    from stepwatch.rules.catalogue import RuleSpec
    from stepwatch.rules.fleet.judged import Judged, Place
    from stepwatch.rules.replay import Analysis
    from stepwatch.rules.whatif import Change

_POLL_SECONDS = 0.2
_EXPLAINED_RUNS = 10


@click.command("analyze")
@click.argument("runs", metavar="RUN...", nargs=-1, shell_complete=complete_directories)
@click.option(
    "--scalars",
    "logs",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Judge a log of scalars instead of a run: CSV, JSONL, trainer_state.json, TensorBoard, W&B offline.",
)
@click.option(
    "--rules",
    "rules",
    multiple=True,
    metavar="NAMES",
    help="Rules or sets, comma-separated; file.py:Class; a rule file (JSON, YAML, TOML).",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="RULE.PARAM=VALUE",
    help="Set a rule's parameter, and say what that changes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or a list for several runs.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "sagemaker"]),
    help="What to print: sagemaker is the evaluation statuses as DescribeTrainingJob has them.",
)
@click.option("--follow", is_flag=True, help="Judge live runs to their end, then print.")
@click.option(
    "--processes", type=click.IntRange(min=1), help="Processes to judge many runs with; by default one per processor."
)
@click.option(
    "--engine",
    type=click.Choice(["local", "dask"]),
    default="local",
    show_default=True,
    help="Judge in processes of this machine, or on Dask's cluster ($DASK_SCHEDULER_ADDRESS, or a new one).",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep what is found in this file (JSONL), and judge only what has changed since.",
)
@click.option("--by", metavar="KEY", help="Sum up by user, model, tag, or the KEY of tags KEY=VALUE.")
@errors.one_line_errors
def command(
    runs: tuple[str, ...],
    logs: tuple[Path, ...],
    rules: tuple[str, ...],
    settings: tuple[str, ...],
    as_json: bool,
    form: str | None,
    follow: bool,
    processes: int | None,
    engine: str,
    results: Path | None,
    by: str | None,
) -> None:
    """Evaluate rules over finished or live runs, or over logs of scalars.

    A RUN is a run, a directory that holds runs, or a quoted pattern such as 'runs/*/seed-?'. Of more than ten runs a
    line each is printed, and a summary.

    Exit status: 0 nothing found, 1 issues found, 2 a run that cannot be read, 3 a rule failed to run (and
    nothing was found).
    """
    from stepwatch.cli.render import console, print_json
    from stepwatch.rules.catalogue import configure

    if not runs and not logs:
        errors.fail("got no run; expected one or more, or --scalars FILE; see stepwatch analyze --help")
    if as_json and form not in (None, "json"):
        errors.fail(f"got --json and --format {form}; expected one of them")
    form = "json" if as_json else form or "text"
    if follow and (engine != "local" or results is not None):
        errors.fail("--follow judges live runs in this process; expected it without --engine and --results")
    names = list(rules) or None
    specs = configure(names, list(settings))
    errors.print_warnings_with_the_result()
    found, judged = _find(runs)
    several = len(found) + len(judged) + len(logs) > 1
    out = console()
    judged_logs = (_tried(_judge_log, log, specs) for log in dict.fromkeys(logs))
    judged_runs = _judge(found, names, list(settings), processes, engine, results)
    if follow:
        judged_runs = (_tried(_follow, run, specs) for run in found)
    with progress("judging runs", len(found)) as advance:
        for each in itertools.chain(judged_logs, judged_runs):
            judged.append(each)
            advance()
    order: dict[Place, int] = {run: place for place, run in enumerate([*found, *logs])}
    judged.sort(key=lambda each: order.get(each.run, -1))
    explains = settings and len(found) <= _EXPLAINED_RUNS and form != "sagemaker"
    changed = _changes(judged, names, specs, found) if explains else {}
    if form == "text":
        _print(out, judged, changed, by)
    else:
        readable = [(each, each.analysis) for each in judged if each.analysis is not None]
        if form == "json":
            printed = [_to_json(each, analysis, changed) for each, analysis in readable]
        else:
            printed = [_statuses(each.run, analysis, specs, found) for each, analysis in readable]
        if printed:
            print_json(printed if several else printed[0])
    _print_besides(judged, specs, found)
    raise SystemExit(_status(judged))


def _find(places: Sequence[str]) -> tuple[list[Place], list[Judged]]:
    """Runs, and the places where there is none."""
    from stepwatch.probe.store.errors import TraceError
    from stepwatch.probe.store.places import find_places
    from stepwatch.rules.fleet.judged import Judged

    found: dict[Place, None] = {}
    failed: list[Judged] = []
    for place in places:
        try:
            found.update(dict.fromkeys(find_places([place])))
        except (TraceError, OSError) as error:
            failed.append(Judged(place, None, errors.spell(error)))
    return list(found), failed


def _judge(
    runs: Sequence[Place],
    names: list[str] | None,
    settings: list[str],
    processes: int | None,
    engine: str,
    results: Path | None,
) -> Iterator[Judged]:
    """Judge runs, those first of which it is known what was found."""
    from stepwatch.rules.catalogue import configure
    from stepwatch.rules.fleet.cluster import judge_on_cluster
    from stepwatch.rules.fleet.kept import KeptResults
    from stepwatch.rules.fleet.processes import judge_runs

    judge = judge_on_cluster if engine == "dask" else judge_runs
    if results is None:
        yield from judge(runs, names, settings, processes)
        return
    with KeptResults(results, configure(names, settings)) as kept:
        left = dict.fromkeys(runs)
        for each in kept.recall(runs):
            del left[each.run]
            yield each
        for each in judge(list(left), names, settings, processes) if left else ():
            kept.keep(each)
            yield each


def _local(run: Place) -> Path:
    return RUN_PATH.convert(run, None, None)


def _follow(run: Place, specs: Sequence[RuleSpec]) -> Analysis:
    from stepwatch.probe.store.reader import Trace
    from stepwatch.rules.replay import LiveAnalysis

    trace = Trace(_local(run))
    judged = LiveAnalysis(trace, specs)
    while trace.live():
        judged.poll()
        time.sleep(_POLL_SECONDS)
    judged.conclude()
    return judged.analysis(live=False)


def _judge_log(log: Place, specs: Sequence[RuleSpec]) -> Analysis:
    from stepwatch.rules.scalar_logs import judge_log, read_log

    return judge_log(read_log(Path(log)), specs)


def _tried(judge: Callable[[Place, Sequence[RuleSpec]], Analysis], run: Place, specs: Sequence[RuleSpec]) -> Judged:
    from stepwatch.probe.store.errors import TraceError
    from stepwatch.rules.fleet.judged import Judged

    try:
        return Judged(run, judge(run, specs))
    except (TraceError, OSError) as error:
        return Judged(run, None, errors.spell(error))


def _changes(
    judged: Sequence[Judged], names: list[str] | None, specs: Sequence[RuleSpec], runs: Container[Place]
) -> dict[Place, list[Change]]:
    """By run what the settings changed."""
    from stepwatch.probe.store.reader import Trace
    from stepwatch.rules.catalogue import configure
    from stepwatch.rules.whatif import changes

    before = configure(names)
    return {
        each.run: changes(Trace(_local(each.run)), before, specs, each.analysis.results)
        for each in judged
        if each.analysis is not None and each.run in runs
    }


def _print_besides(judged: Sequence[Judged], specs: Sequence[RuleSpec], runs: Container[Place]) -> None:
    """Say which runs could not be read, and which reports of rules were written."""
    from stepwatch.cli.rule_reports import write_rule_reports

    for each in judged:
        if each.analysis is None:
            click.echo(f"stepwatch: {' '.join(each.error.split())}", err=True)
        elif isinstance(each.run, Path) and each.run in runs:
            for report in write_rule_reports(each.run, specs, each.analysis.results):
                click.echo(f"stepwatch: wrote {report}", err=True)


def _print(out: Console, judged: Sequence[Judged], changed: Mapping[Place, list[Change]], by: str | None) -> None:
    from stepwatch.cli.fleet import print_groups, print_lines, print_summary
    from stepwatch.cli.render import print_analysis, print_changes

    readable = [(each.run, each.analysis) for each in judged if each.analysis is not None]
    if len(readable) > _EXPLAINED_RUNS:
        print_lines(out, judged)
    else:
        for number, (run, analysis) in enumerate(readable):
            if number:
                out.print()
            print_analysis(out, run, analysis)
            print_changes(out, changed.get(run, []))
    if len(readable) > 1:
        print_summary(out, judged)
    if by is not None:
        print_groups(out, judged, by)


def _to_json(judged: Judged, analysis: Analysis, changed: Mapping[Place, list[Change]]) -> dict[str, Any]:
    from stepwatch.rules.diagnosis import diagnose

    return {
        "run": str(judged.run),
        "live": analysis.live,
        "diagnoses": [story.to_json() for story in diagnose(analysis.findings)],
        "rules": [result.to_json() for result in analysis.results],
        "notes": analysis.notes,
        "warnings": analysis.warnings,
        "counters": analysis.counters,
        "seconds": judged.seconds,
        "lost_seconds": judged.lost_seconds,
        "wasted_seconds": judged.wasted_seconds,
        "user": judged.user,
        "model": judged.model,
        "tags": list(judged.tags),
        **({"changes": [each.to_json() for each in changed[judged.run]]} if judged.run in changed else {}),
    }


def _statuses(run: Place, analysis: Analysis, specs: Sequence[RuleSpec], runs: Container[Place]) -> dict[str, Any]:
    from stepwatch.probe.store.reader import Trace
    from stepwatch.rules.service.statuses import EvaluationStatuses

    statuses = EvaluationStatuses(Trace(_local(run)).info.job_name if run in runs else Path(run).stem, specs)
    statuses.judged(analysis.results)
    return statuses.to_json()


def _status(judged: Sequence[Judged]) -> int:
    from stepwatch.rules.finding import Status

    analyses = [each.analysis for each in judged if each.analysis is not None]
    if len(analyses) < len(judged):
        return errors.UNUSABLE
    if any(analysis.findings for analysis in analyses):
        return errors.ISSUES_FOUND
    failed = any(result.status is Status.ERROR for analysis in analyses for result in analysis.results)
    return errors.RULE_FAILED if failed else errors.NOTHING_FOUND
