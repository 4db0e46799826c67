"""``stepwatch rules``."""

from __future__ import annotations

import inspect
from typing import Any

import click

from stepwatch.cli import errors


@click.command("rules")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@errors.one_line_errors
def command(name: str | None, as_json: bool) -> None:
    """List the rules with their parameters, or explain the one NAMEd."""
    from stepwatch.cli.render import console, print_json
    from stepwatch.rules.catalogue import RULE_SETS, STEP_RANGE, RuleSpec, parameters_of, resolve
    from stepwatch.rules.rule import Rule

    def describe(rule: type[Rule]) -> dict[str, Any]:
        return {
            "rule": rule.__name__,
            "sets": [key for key, rules in RULE_SETS.items() if rule in rules],
            "severity": rule.severity.value,
            "parameters": {p.name: {"type": p.type, "default": p.default} for p in parameters_of(rule)},
            "description": inspect.getdoc(rule) or "",
        }

    every = [RuleSpec(rule) for rules in RULE_SETS.values() for rule in rules]
    same = [spec for spec in every if name and spec.name.lower() == name.strip().lower()]
    specs = same or (resolve(name) if name else every)
    described = [describe(spec.rule) for spec in specs]
    if as_json:
        print_json(described[0] if name and len(described) == 1 else described)
        return
    out = console()
    shown = ""
    for entry in described:
        settings = ", ".join(f"{key}={value['default']}" for key, value in entry["parameters"].items())
        if name:
            out.print(f"{entry['rule']} ({', '.join(entry['sets']) or 'own'}; severity {entry['severity']})")
            out.print(entry["description"], markup=False)
            out.print(f"\nDefaults: {settings or 'no parameters'}", markup=False)
            out.print(f"Every rule also has {' and '.join(STEP_RANGE)}.\n")
        else:
            if entry["sets"] and entry["sets"][0] != shown:
                shown = entry["sets"][0]
                out.print(f"--rules {shown}", style="bold")
            first = entry["description"].splitlines()[0] if entry["description"] else ""
            out.print(f"{entry['rule']}: {first}", markup=False)
            out.print(f"    {entry['severity']}; {settings or 'no parameters'}", style="dim", markup=False)
