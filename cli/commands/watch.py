"""``stepwatch watch``."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH

if TYPE_CHECKING:
    from rich.console import Console

    from stepwatch.rules.sidecar.run import Event


_SECONDS = click.FloatRange(min=0)


@click.command("watch")
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=RUN_PATH)
@click.option("--rules", "rules", multiple=True, metavar="NAMES", help="Rules or sets, comma-separated.")
@click.option("--set", "settings", multiple=True, metavar="RULE.PARAM=VALUE", help="Set a rule's parameter.")
@click.option("--stop", "stop", is_flag=True, help="Stop a job when an error is found: ask, SIGTERM, SIGKILL.")
@click.option("--answer", type=_SECONDS, default=60.0, show_default=True, help="Seconds to wait for the job's answer.")
@click.option("--grace", type=_SECONDS, default=30.0, show_default=True, help="Seconds between SIGTERM and SIGKILL.")
@click.option("--dry-run", is_flag=True, help="Say what --stop would do, and do not do it.")
@click.option("--webhook", metavar="URL", help="Post findings as JSON; the same as --notify URL.")
@click.option(
    "--notify", "notify", multiple=True, metavar="CHANNEL", help="Tell of findings; docs/watching.md has the channels."
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.05),
    default=1.0,
    show_default=True,
    help="Seconds between looks where no event comes.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Directory for the records of runs that cannot be written; $XDG_STATE_HOME/stepwatch by default.",
)
@click.option("--once", is_flag=True, help="End when every run that is there has ended.")
@errors.one_line_errors
def command(
    directories: tuple[Path, ...],
    rules: tuple[str, ...],
    settings: tuple[str, ...],
    stop: bool,
    answer: float,
    grace: float,
    dry_run: bool,
    webhook: str | None,
    notify: tuple[str, ...],
    interval: float,
    state: Path | None,
    once: bool,
) -> None:
    """Follow live runs: DIR is a run, or a directory of runs at any depth. Ends with Ctrl-C or SIGTERM.

    It may be killed and started again at any moment: no finding is missed, and no action is done twice. Of several
    that watch the same run one acts, and another takes over when it dies.

    Exit status: 1 when something was found, else 0.
    """
    from stepwatch.cli.render import console
    from stepwatch.rules.actions import Action, ForRules
    from stepwatch.rules.catalogue import configure
    from stepwatch.rules.sidecar.changes import Changes
    from stepwatch.rules.sidecar.places import default_state_dir
    from stepwatch.rules.sidecar.sidecar import Sidecar
    from stepwatch.rules.sidecar.stopping import DryRun, EscalatingStop
    from stepwatch.rules.telling.channels import channel
    from stepwatch.rules.telling.notify import NotifyAction
    from stepwatch.rules.telling.outbox import Courier, Outbox

    actions: list[Action] = []
    spellings = [*notify, *([webhook] if webhook else [])]
    outboxes = [Outbox((state or default_state_dir()) / "outbox", channel(spelling)) for spelling in spellings]
    tell = NotifyAction(outboxes)
    if outboxes:
        actions.append(tell)
    specs = configure(list(rules) or None, list(settings))
    stopping = DryRun() if dry_run else EscalatingStop(answer=answer, grace=grace, shout=tell.shout)
    if stop:
        actions.append(stopping)
    elif any(spec.stops for spec in specs):
        actions.append(ForRules(stopping, [spec.name for spec in specs if spec.stops]))
    sidecar = Sidecar(list(directories), specs, actions, state)
    courier = Courier(outboxes)
    out = console()
    found = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's Ctrl-C
    try:
        with Changes(directories, interval) as changes:
            while True:
                began = time.monotonic()
                for event in sidecar.look():
                    found |= _tell(out, event)
                if once and sidecar.all_ended():
                    break
                changes.wait(busy=time.monotonic() - began)
    except KeyboardInterrupt:
        click.echo("stepwatch: no longer watching", err=True)
    finally:
        sidecar.close()
        courier.close()
    raise SystemExit(errors.ISSUES_FOUND if found else errors.NOTHING_FOUND)


def _tell(out: Console, event: Event) -> bool:
    """Print it; whether it is a finding."""
    from stepwatch.cli.render import finding_block
    from stepwatch.rules.sidecar.run import Ended, Found, Said

    if isinstance(event, Found):
        out.print(f"{event.run}:", style="bold", markup=False)
        out.print(finding_block(event.finding))
        return True
    if isinstance(event, Ended):
        out.print(f"{event.run}: {event.status}, {event.findings} issues found", markup=False)
    elif isinstance(event, Said):
        out.print(f"{event.run}: {event.message}", style="yellow", markup=False)
    return False
