"""``stepwatch rules``."""

from __future__ import annotations

import inspect
from typing import Any

import click

from stepwatch.cli import errors


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
    from stepwatch.rules.catalogue import STEP_RANGE

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
            out.print(f"Every rule also has {' and '.join(STEP_RANGE)}.\n")
        else:
            if origin != shown:
                shown = origin
                out.print(f"--rules {shown}" if entry["sets"] else f"of {shown}", style="bold")
            first = entry["description"].splitlines()[0] if entry["description"] else ""
            out.print(f"{entry['rule']}: {first}", markup=False)
            out.print(f"    {entry['severity']}; {settings or 'no parameters'}", style="dim", markup=False)


def _described(name: str | None) -> list[dict[str, Any]]:
    """The rules of that name, or all: built-in ones by set, then those of installed packages."""
    from stepwatch.rules.catalogue import RULE_SETS, resolve

    every = [(rule, "") for rules in RULE_SETS.values() for rule in rules]
    if not name:
        return [_describe(rule, package) for rule, package in [*every, *_provided()]]
    same = [rule for rule, _ in every if rule.__name__.lower() == name.strip().lower()]
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
    from stepwatch.rules.catalogue import RULE_SETS, parameters_of

    return {
        "rule": rule.__name__,
        "sets": [key for key, rules in RULE_SETS.items() if rule in rules],
        "package": package,
        "severity": rule.severity.value,
        "parameters": {p.name: {"type": p.type, "default": p.default} for p in parameters_of(rule)},
        "description": inspect.getdoc(rule) or "",
    }
