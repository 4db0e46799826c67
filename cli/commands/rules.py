"""``stepwatch rules``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH


class _RulesGroup(click.Group):
    """Names of rules may stand where a command could."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = bool(args) and args[0] in (*self.commands, *self.get_help_option_names(ctx))
        return super().parse_args(ctx, args if named else ["list", *args])


@click.group("rules", cls=_RulesGroup, subcommand_metavar="[NAME | COMMAND ...]")
def command() -> None:
    """List the rules with their parameters, explain the one NAMEd, or fit thresholds to runs of your own."""


@command.command("list", short_help="List the rules; the default.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@errors.one_line_errors
def list_rules(name: str | None, as_json: bool) -> None:
    """List the rules with their parameters, or explain the one NAMEd; the word "list" may be left out."""
    from stepwatch.cli.render import console, print_json
    from stepwatch.rules.catalogue import COMMON

    described = _described(name)
    if as_json:
        print_json(described[0] if name and len(described) == 1 else described)
        return
    out = console()
    shown = ""
    for entry in described:
        settings = ", ".join(f"{key}={value['default']}" for key, value in entry["parameters"].items())
        origin = ", ".join(entry["sets"]) or entry["package"] or "own"
        if name:
            out.print(f"{entry['rule']} ({origin}; severity {entry['severity']})")
            out.print(entry["description"], markup=False)
            out.print(f"\nDefaults: {settings or 'no parameters'}", markup=False)
            out.print(f"Every rule also has {', '.join(COMMON)}.")
            out.print(f"More: {entry['docs']}\n" if entry["docs"] else "", markup=False)
        else:
            if origin != shown:
                shown = origin
                out.print(f"--rules {shown}" if entry["sets"] else f"of {shown}", style="bold")
            first = entry["description"].splitlines()[0] if entry["description"] else ""
            out.print(f"{entry['rule']}: {first}", markup=False)
            out.print(f"    {entry['severity']}; {settings or 'no parameters'}", style="dim", markup=False)


@command.command("calibrate", short_help="Fit thresholds to healthy runs of your own.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=RUN_PATH)
@click.option("--rules", "rules", multiple=True, metavar="NAMES", help="Rules or sets; recommended by default.")
@click.option("--set", "settings", multiple=True, metavar="RULE.PARAM=VALUE", help="Set a rule's parameter first.")
@click.option(
    "--false-alarms",
    "rate",
    type=float,
    default=0.01,
    show_default=True,
    metavar="RATE",
    help="Share of healthy runs on which each rule may fire.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a rule file with the thresholds: .yaml or .json.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@errors.one_line_errors
def calibrate_rules(
    runs: tuple[Path, ...],
    rules: tuple[str, ...],
    settings: tuple[str, ...],
    rate: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """Propose thresholds that healthy runs of your own would not have passed.

    Give it runs in which nothing was wrong, the more the better: from 1 / RATE - 1 of them on thresholds follow
    from their order alone, from fewer by extrapolation.
    """
    from stepwatch.cli.calibration import check_suffix, print_calibration, write_rule_file
    from stepwatch.cli.render import console, print_json
    from stepwatch.rules.calibration import calibrate
    from stepwatch.rules.catalogue import configure

    if output is not None:
        check_suffix(output)
    found = calibrate(runs, configure(list(rules) or None, list(settings)), rate)
    if output is not None:
        write_rule_file(output, found)
    if as_json:
        print_json(found.to_json())
    else:
        print_calibration(console(), found, output)


def _described(name: str | None) -> list[dict[str, Any]]:
    """The rules of that name, or all, each once: built-in ones by set, then those of installed packages."""
    from stepwatch.rules.catalogue import RULE_SETS, resolve

    every = dict.fromkeys((rule for rules in RULE_SETS.values() for rule in rules), "")
    if not name:
        return [_describe(rule, package) for rule, package in [*every.items(), *_provided()]]
    same = [rule for rule in every if rule.__name__.lower() == name.strip().lower()]
    return [_describe(rule, "") for rule in same or [spec.rule for spec in resolve(name)]]


def _provided() -> list[tuple[Any, str]]:
    """Rules of installed packages and these packages; what cannot be loaded is said on stderr."""
    from stepwatch.rules.catalogue import resolve
    from stepwatch.rules.errors import RuleError
    from stepwatch.rules.installed import installed

    found: dict[Any, str] = {}
    for name, point in installed().items():
        package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
        try:
            for spec in resolve(name):
                found.setdefault(spec.rule, package)
        except RuleError as error:
            click.echo(f"stepwatch: {package} provides {name!r}: {error}", err=True)
    return list(found.items())


def _describe(rule: Any, package: str) -> dict[str, Any]:
    from stepwatch.rules.catalogue import RULE_SETS, RuleSpec, parameters_of

    return {
        "rule": rule.__name__,
        "sets": [key for key, rules in RULE_SETS.items() if rule in rules],
        "package": package,
        "severity": rule.severity.value,
        "parameters": {p.name: {"type": p.type, "default": p.default} for p in parameters_of(rule)},
        "docs": RuleSpec(rule).docs,
        "description": inspect.getdoc(rule) or "",
    }
