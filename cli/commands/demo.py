"""``stepwatch demo``."""

from __future__ import annotations

from pathlib import Path

import click

from stepwatch.cli import errors
from stepwatch.cli.demo.faults import FAULTS


@click.command("demo")
@click.argument("fault", required=False, default="exploding")
@click.option("--list", "list_them", is_flag=True, help="List the faults that can be shown.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Where to.",
)
@errors.one_line_errors
def command(fault: str, list_them: bool, out: Path) -> None:
    """Train a healthy model and one with a FAULT side by side, both judged while they train.

    Real training on scikit-learn's handwritten digits; nothing is downloaded.
    """
    if list_them:
        for each in FAULTS:
            click.echo(f"{each.name:12} {each.mistake}")
        return
    chosen = next((each for each in FAULTS if each.name == fault), None)
    if chosen is None:
        errors.fail(f"unknown fault {fault!r}; expected one of {', '.join(each.name for each in FAULTS)}")
    with errors.extra("demo", "the demonstration"):
        from stepwatch.cli.demo.show import run_demo
    raise SystemExit(run_demo(chosen, out))
