"""How calibrated thresholds look in the terminal and in a rule file."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stepwatch.rules.calibration import Calibration, Proposal


def print_calibration(out: Console, found: Calibration, written: Path | None) -> None:
    """Thresholds before and after, on how many runs they fire, and how to use them."""
    out.print(f"thresholds for {found.rate:.2g} false alarms per healthy run and rule, from {len(found.runs)} runs\n")
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column in ("rule", "parameter", "before", "after", "nearest run", "at"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("before", "after", "at") else "left")
    table.add_column("", style="dim")
    for proposal in found.proposals:
        threshold = proposal.threshold
        run, at = _nearest(proposal)
        changed = proposal.proposed != threshold.present
        table.add_row(
            threshold.spec.name,
            threshold.parameter,
            f"{threshold.present:.3g}",
            Text(f"{proposal.proposed:.3g}", "bold" if changed else ""),
            Path(run).name,
            "" if at is None else f"{at:.3g}",
            proposal.note,
        )
    out.print(table)
    loud = {rule: sides for rule, sides in found.alarms.items() if any(sides)}
    out.print()
    for rule, (before, after) in loud.items():
        named = f" ({', '.join(Path(run).name for run in after[:3])})" if after else ""
        out.print(f"{rule} fired on {len(before)} of these runs before, and fires on {len(after)} after{named}")
    if not loud:
        out.print("no rule fires on any of these runs, before or after")
    if written is not None:
        out.print(f"written to {written}; use: --rules {written}", markup=False)
    elif found.settings:
        out.print("use: " + " ".join(f"--set {setting}" for setting in found.settings), markup=False)


def check_suffix(path: Path) -> None:
    """Check that a rule file can be written under this name.

    Raises:
        ValueError: it is to be of a kind that cannot be written.
    """
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ValueError(f"{path}: rule files are written as .yaml or .json")


def write_rule_file(path: Path, found: Calibration) -> None:
    """Write the rules with their thresholds, in YAML or JSON by the file's name."""
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps(found.rule_file(), indent=2) + "\n")
        return
    said = f"thresholds for {found.rate:.2g} false alarms per healthy run, from {len(found.runs)} runs"
    path.write_text(f"# {said}\n{yaml.safe_dump(found.rule_file(), sort_keys=False)}")


def _nearest(proposal: Proposal) -> tuple[str, float | None]:
    """The run that comes nearest to firing, and the value at which it does."""
    known = {run: value for run, value in proposal.critical.items() if value is not None}
    if not known:
        return "", None
    run = (max if proposal.threshold.quieter == "higher" else min)(known, key=lambda run: known[run])
    return run, known[run]
