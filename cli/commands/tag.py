"""``stepwatch tag``."""

from __future__ import annotations

from pathlib import Path

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH


@click.command("tag")
@click.argument("run", type=RUN_PATH)
@click.argument("tags", metavar="[TAG]...", nargs=-1)
@click.option("--remove", multiple=True, metavar="TAG", help="Take a tag away.")
@click.option("--note", metavar="TEXT", help="Say something in words, in place of what was said; '' removes it.")
@click.option("--baseline", is_flag=True, help="Hold the other runs of its directory against this one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@errors.one_line_errors
def command(
    run: Path, tags: tuple[str, ...], remove: tuple[str, ...], note: str | None, baseline: bool, as_json: bool
) -> None:
    """Give a RUN tags, a note, or the place of the baseline, and print what it has.

    A TAG is a word, or KEY=VALUE by which the summary over many runs counts. RUN may be a directory of runs or a quoted
    pattern: then each of them gets the tags.
    """
    from rich.text import Text

    from stepwatch.cli.render import console, labels_line, print_json
    from stepwatch.probe.store.discovery import find_runs
    from stepwatch.probe.store.labels import change_labels, is_baseline, mark_baseline
    from stepwatch.probe.store.remote import in_copy, refresh

    runs = find_runs([run])
    if baseline and len(runs) > 1:
        errors.fail(f"{run}: holds {len(runs)} runs; expected one that is the baseline")
    if baseline and in_copy(run):
        errors.fail(f"{run}: lies in an object store; expected a run in a local directory to mark as its baseline")
    said = {each: change_labels(each, add=tags, remove=remove, note=note) for each in runs}
    if baseline:
        mark_baseline(run)
    refresh(run)
    rows = [
        {"run": str(each), "tags": list(labels.tags), "note": labels.note, "baseline": is_baseline(each)}
        for each, labels in said.items()
    ]
    if as_json:
        print_json(rows if len(rows) > 1 else rows[0])
        return
    out = console()
    for each, labels in said.items():
        line = labels_line(labels, baseline=is_baseline(each)) or "no tags, no note"
        out.print(Text.assemble((str(each), "bold"), f"  {line}"))
