"""What the pages say is there is there, and the other way round."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from stepwatch.cli.main import main
from stepwatch.probe.store.schema import TABLES
from stepwatch.rules.catalogue import RULE_SETS, parameters_of
from stepwatch.rules.rule import Rule

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


RULE_PAGES = {
    "recommended": "rules.md",
    "profiler": "rules.md",
    "sagemaker": "sagemaker-rules.md",
    "sagemaker-profiler": "sagemaker-profiler-rules.md",
}


@pytest.mark.parametrize(
    ("page_name", "rule"), [(RULE_PAGES[key], rule) for key in RULE_SETS for rule in RULE_SETS[key]]
)
def test_every_rule_and_parameter_is_documented(page_name: str, rule: type[Rule]) -> None:
    name = rule.__name__
    page = (ROOT / "docs" / page_name).read_text()
    section = re.search(rf"^## {name} .*?(?=^## |^# |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, f"docs/{page_name} has no section for {name}"
    assert rule.severity.value in section[0].splitlines()[0]
    for parameter in parameters_of(rule):
        assert f"`{parameter.name}`" in section[0], f"{name}.{parameter.name} is not on the page"
        assert f"{parameter.name}:" in (rule.__doc__ or ""), f"{name}.{parameter.name} is not in the docstring"


def test_every_command_is_documented() -> None:
    context = click.Context(main)
    pages = " ".join(page.read_text() for page in PAGES)
    for name in main.list_commands(context):
        assert f"stepwatch {name}" in pages, f"stepwatch {name} is on no page"
        command = main.get_command(context, name)
        assert command is not None and command.help
        below = list(command.commands.values()) if isinstance(command, click.Group) else []
        for each in (command, *below):
            for parameter in each.params:
                if isinstance(parameter, click.Option):
                    assert parameter.help, f"{name} {each.name} {parameter.opts[0]} has no help"


def test_every_table_is_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for table in TABLES:
        assert re.search(rf"\b{table}\b", page), f"{table} is not in docs/architecture.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
