"""``stepwatch analyze``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from stepwatch.cli import errors


@click.command("analyze")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--rules",
    "rules",
    multiple=True,
    metavar="NAMES",
    help="Rules or sets, comma-separated; or file.py:Class.",
)
@click.option("--set", "settings", multiple=True, metavar="RULE.PARAM=VALUE", help="Set a rule's parameter.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or a list for several runs.")
@errors.one_line_errors
def command(runs: tuple[Path, ...], rules: tuple[str, ...], settings: tuple[str, ...], as_json: bool) -> None:
    """Evaluate rules over finished or live runs.

    Exit status: 0 nothing found, 1 issues found, 2 a run that cannot be read, 3 a rule failed to run (and
    nothing was found).
    """
    from stepwatch.cli.render import console, print_analysis
    from stepwatch.probe.store.errors import TraceError
    from stepwatch.probe.store.reader import Trace
    from stepwatch.rules.catalogue import configure
    from stepwatch.rules.finding import Status
    from stepwatch.rules.replay import analyze

    specs = configure(list(rules) or None, list(settings))
    printed: list[dict[str, Any]] = []
    out = console()
    status = errors.NOTHING_FOUND
    unreadable: list[str] = []
    for number, run in enumerate(runs):
        try:
            analysis = analyze(Trace(run), specs)
        except TraceError as error:
            unreadable.append(str(error))
            continue
        if analysis.findings:
            status = errors.ISSUES_FOUND
        elif status == errors.NOTHING_FOUND and any(r.status is Status.ERROR for r in analysis.results):
            status = errors.RULE_FAILED
        if as_json:
            printed.append(
                {
                    "run": str(run),
                    "live": analysis.live,
                    "rules": [result.to_json() for result in analysis.results],
                    "notes": analysis.notes,
                    "warnings": analysis.warnings,
                    "counters": analysis.counters,
                }
            )
        else:
            if number:
                out.print()
            print_analysis(out, run, analysis)
    if as_json and printed:
        click.echo(json.dumps(printed if len(runs) > 1 else printed[0], indent=2))
    for message in unreadable:
        click.echo(f"stepwatch: {message}", err=True)
    raise SystemExit(errors.UNUSABLE if unreadable else status)
