"""The command ``stepwatch``. Each command's module is imported when it is called, so that help is quick."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

import click

_COMMANDS = {
    "run": "record a training script with no change to it",
    "analyze": "evaluate rules over finished or live runs",
    "watch": "follow live runs, judge them, act",
    "show": "summarise a run in the terminal",
    "report": "write one self-contained HTML file about a run",
    "rules": "list the rules, or explain one",
    "stop": "ask a running job to stop after its checkpoint",
    "demo": "train a healthy and a faulty model side by side",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"stepwatch.cli.commands.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _version() -> str:
    try:
        return version("stepwatch")
    except PackageNotFoundError:
        return "unknown"


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="stepwatch")
def main() -> None:
    """Debug and profile training jobs: record cheaply, judge rightly, stop safely.

    Exit status: 0 nothing found, 1 issues found, 2 unusable arguments or input, 3 a rule failed to run.
    """


if __name__ == "__main__":
    main()
