"""The command ``stepwatch``. Each command's module is imported when it is called, so that help is quick."""

from __future__ import annotations

import importlib
import keyword
from typing import Any, NoReturn

import click

from stepwatch.cli.errors import INTERRUPTED, fail

_COMMANDS = {
    "run": "record a training script with no change to it",
    "sample": "record what a job that has no hook does to its machine",
    "analyze": "evaluate rules over finished or live runs",
    "watch": "follow live runs, judge them, act",
    "show": "summarise a run in the terminal",
    "plot": "draw curves of runs, to a file or in the terminal",
    "top": "show a live run in the terminal: pace, phases, machine, findings",
    "profile": "profile some steps of a live run by torch.profiler, or show what was profiled",
    "stacks": "show where the threads of a live run are, and which lines hold the time",
    "report": "write one self-contained HTML file about a run",
    "serve": "show the runs below a directory in a browser, while they grow",
    "sql": "answer a SELECT query over runs",
    "list": "list the runs below a directory, the best by a scalar first",
    "tag": "give runs tags and notes, or make one the baseline",
    "compare": "hold runs against a baseline: where they part, which is better",
    "study": "sum up a tuning job: its trials, and why which was given up",
    "checkpoints": "list a job's checkpoints, and which are suspect",
    "rules": "list the rules, or explain one",
    "upload": "copy to an object store what a job could not copy itself",
    "stop": "ask a running job to stop after its checkpoint",
    "import": "turn a log of scalars, a trace of torch.profiler, or what smdebug wrote into a run",
    "export": "write a run in the format of another tool",
    "demo": "train a healthy and a faulty model side by side",
}


class _LazyGroup(click.Group):
    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run a command; what is wrong with its arguments is one line, as everything else that is wrong."""
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx is not None else "stepwatch"
            fail(f"{error.format_message().rstrip('.')}; see {command} --help")
        except click.Abort:
            fail("interrupted", INTERRUPTED)
        raise SystemExit(status or 0)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        file = f"{name}_" if keyword.iskeyword(name) else name
        module = importlib.import_module(f"stepwatch.cli.commands.{file}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="stepwatch", prog_name="stepwatch")
@click.pass_context
def main(context: click.Context) -> None:
    """Debug and profile training jobs: record cheaply, judge rightly, stop safely.

    Exit status: 0 nothing found, 1 issues found, 2 unusable arguments or input, 3 a rule failed to run,
    130 interrupted.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


if __name__ == "__main__":
    main()
