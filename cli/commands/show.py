"""``stepwatch show``."""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH

_SHOWN_TENSORS = 40


@click.command("show")
@click.argument("run", type=RUN_PATH)
@click.option("--tensors", metavar="REGEX", help="Show all tensors whose name matches, with their last statistics.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@errors.one_line_errors
def command(run: Path, tensors: str | None, as_json: bool) -> None:
    """Summarise a run: how it went and ended, losses, tensors, what was found."""
    from rich.text import Text

    from stepwatch.cli.lean import without_pandas
    from stepwatch.cli.render import console, labels_line, print_hook_cost, print_json, print_reservations, sparkline
    from stepwatch.cli.summary import summarise
    from stepwatch.probe.store.labels import Labels
    from stepwatch.probe.store.reader import Trace
    from stepwatch.rules.compare.order import OWN_SCALARS

    try:
        pattern = re.compile(tensors or "")
    except re.error as error:
        errors.fail(f"--tensors {tensors!r} is not a regular expression: {error}")
    errors.print_warnings_with_the_result()
    with nullcontext() if as_json else without_pandas():
        summary = summarise(Trace(run), pattern, with_profile=as_json)
    if as_json:
        print_json(summary)
        return
    out = console()
    out.print(Text.assemble((str(run), "bold"), f"  {summary['job_name']}"))
    labels = Labels(tuple(summary["tags"]), summary["note"])
    if said := labels_line(labels, baseline=summary["baseline"]):
        out.print(Text(said))
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary["start_ns"] / 1e9))
    ranks = f"{summary['world_size']} rank{'s' if summary['world_size'] != 1 else ''}"
    out.print(f"started {started} on {summary['host']}, {ranks}, {summary['state']}", markup=False)
    out.print(f"command: {' '.join(summary['command'])}", markup=False)
    rate = summary["steps_per_second"]
    pace = f", {rate:.4g} per second" if rate else ""
    out.print(f"{summary['steps']} training steps in {summary['seconds']:.4g} s{pace}")
    print_hook_cost(out, summary["hook"])
    if said := summary["learning"]["said"]:
        out.print(f"learning curves: {said}", markup=False)
    for name, series in summary["series"].items():
        if name.startswith(OWN_SCALARS):
            continue
        values = [float(value) for value in series["values"]]
        line = f"  {name} [{series['mode']}] {sparkline(values)} {values[0]:.4g} -> {values[-1]:.4g}"
        out.print(line, markup=False)
    for each in summary["profiled"]:
        steps = f"{each['steps']} step{'s' if each['steps'] != 1 else ''} from {each['first_step']}"
        out.print(f"profiled: rank {each['rank']}, {steps}; stepwatch profile shows them", markup=False)
    _print_tensors(out, summary["tensors"], everything=tensors is not None)
    for row in summary["findings"]:
        done = "; ".join(f"{a['action']}: {a['detail']}" for a in row["actions"])
        text = f"found at step {row['last_step']} by the {row['judged_by']}: {row['rule']}: {row['message']}"
        out.print(f"{text}{f' ({done})' if done else ''}", markup=False, style="red")
    print_reservations(out, summary["notes"], summary["warnings"], summary["counters"])


def _print_tensors(out: Any, rows: list[dict[str, Any]], *, everything: bool) -> None:
    from rich.table import Table

    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("tensor", "shape", "step", "min", "max", "mean", "std", "l2", "NaN/Inf"):
        table.add_column(column, no_wrap=column == "tensor", justify="left" if column == "tensor" else "right")
    shown = rows if everything else rows[:_SHOWN_TENSORS]
    for row in shown:
        numbers = [f"{row[name]:.3g}" for name in ("min", "max", "mean", "std", "l2")]
        shape = "x".join(str(n) for n in row["shape"])
        table.add_row(row["name"], shape, str(row["step"]), *numbers, str(row["n_nan"] + row["n_inf"]))
    out.print(table)
    if len(shown) < len(rows):
        out.print(f"... and {len(rows) - len(shown)} more tensors; --tensors . shows all", style="dim")
