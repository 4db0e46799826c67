"""``stepwatch watch``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH


@click.command("watch")
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=RUN_PATH)
@click.option("--rules", "rules", multiple=True, metavar="NAMES", help="Rules or sets, comma-separated.")
@click.option("--set", "settings", multiple=True, metavar="RULE.PARAM=VALUE", help="Set a rule's parameter.")
@click.option("--stop", "stop", is_flag=True, help="Stop a job when an error is found.")
@click.option("--webhook", metavar="URL", help="Post findings as JSON.")
@click.option("--interval", default=1.0, show_default=True, help="Seconds between looks where no event comes.")
@click.option("--once", is_flag=True, help="End when every run that is there has ended.")
@errors.one_line_errors
def command(
    directories: tuple[Path, ...],
    rules: tuple[str, ...],
    settings: tuple[str, ...],
    stop: bool,
    webhook: str | None,
    interval: float,
    once: bool,
) -> None:
    """Follow live runs: DIR is a run, or a directory of runs. Ends with Ctrl-C.

    Exit status: 1 when something was found, else 0.
    """
    from stepwatch.cli.watching import Watcher
    from stepwatch.rules.actions import Action, StopAction, WebhookAction
    from stepwatch.rules.catalogue import configure

    actions: list[Action] = []
    if stop:
        actions.append(StopAction())
    if webhook:
        actions.append(WebhookAction(webhook))
    watcher = Watcher(list(directories), configure(list(rules) or None, list(settings)), actions)
    try:
        with watcher.events() as changed:
            while True:
                watcher.look()
                if once and watcher.all_ended():
                    break
                changed.wait(interval)
                changed.clear()
                time.sleep(0.05)  # a flush writes several files
    except KeyboardInterrupt:
        click.echo("stepwatch: no longer watching", err=True)
    raise SystemExit(errors.ISSUES_FOUND if watcher.found else errors.NOTHING_FOUND)
