"""What the pages say is there is there, and the other way round."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from stepwatch.cli.main import main
from stepwatch.probe.store.schema import TABLES
from stepwatch.rules.catalogue import RULE_SETS, RuleSpec, parameters_of
from stepwatch.rules.rule import Rule

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


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


@pytest.mark.parametrize("rule", RULE_SETS["recommended"])
def test_every_recommended_rule_has_a_page(rule: type[Rule]) -> None:
    page = ROOT / RuleSpec(rule).docs
    assert page.is_file(), f"{rule.__name__} has no page {page.name} under docs/rules; see the others there"
    text = page.read_text()
    assert re.match(rf"# {rule.__name__} \(.*\b{rule.severity.value}\b", text)
    sections = ("What it means", "How it is computed", "What triggers it falsely", "How to tune it")
    found = re.findall(r"^## (.*)\n(.+)", text, re.MULTILINE)
    assert [title for title, _ in found] == list(sections)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE))
    assert rows == {p.name: str(p.default) for p in parameters_of(rule)}


@pytest.mark.parametrize("rule", sorted({rule for rules in RULE_SETS.values() for rule in rules}, key=str))
def test_what_findings_link_to_is_there(rule: type[Rule]) -> None:
    page = ROOT / RuleSpec(rule).docs
    assert page.is_file() and rule.__name__ in page.read_text()


def test_every_command_is_documented() -> None:
    context = click.Context(main)
    texts = [page.read_text() for page in PAGES]
    for name in main.list_commands(context):
        pages = "\n".join(text for text in texts if re.search(rf"stepwatch {name}\b", text))
        assert pages, f"stepwatch {name} is on no page"
        command = main.get_command(context, name)
        assert command is not None and command.help
        below = list(command.commands.values()) if isinstance(command, click.Group) else []
        for each in (command, *below):
            for parameter in each.params:
                if isinstance(parameter, click.Option):
                    assert parameter.help, f"{name} {each.name} {parameter.opts[0]} has no help"
                    spelled = "|".join(map(re.escape, parameter.opts))
                    assert re.search(rf"(?:{spelled})(?![\w-])", pages), f"{name} {spelled} is on no page about it"


def test_every_table_is_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for table in TABLES:
        assert re.search(rf"\b{table}\b", page), f"{table} is not in docs/architecture.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_the_pages_can_be_typed(page: Path) -> None:
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^(?:\$ )?stepwatch (.*)", block.replace("\\\n", " "), re.MULTILINE):
            words = shlex.split(re.split(r" {2,}| [|>&] | #", line)[0])
            command: click.Command | None = main
            while isinstance(command, click.Group) and words and not words[0].startswith("-"):
                name = words[0]
                found = command.get_command(click.Context(command), name)
                if found is None and command is not main:
                    break
                assert found is not None, f"{page.name}: stepwatch {line}: there is no command {name!r}"
                command, words = found, words[1:]
            assert command is not None
            try:
                command.make_parser(click.Context(command, **command.context_settings)).parse_args(words)
            except click.UsageError as error:
                pytest.fail(f"{page.name}: stepwatch {line}: {error.format_message()}")
