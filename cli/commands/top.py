"""``stepwatch top``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from stepwatch.cli import errors


@click.command("top")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--interval", default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Print the present state and end.")
@errors.one_line_errors
def command(run: Path, interval: float, once: bool) -> None:
    """Show a live RUN in the terminal: pace, phases, losses, machine, findings. Ends with the run, or with Ctrl-C."""
    from rich.live import Live

    from stepwatch.cli.render import console
    from stepwatch.cli.top import Watch, screen
    from stepwatch.probe.store.reader import Trace

    if interval <= 0:
        errors.fail(f"--interval is {interval}; expected seconds, more than 0")
    trace = Trace(run)
    watch = Watch(trace)
    out = console()
    if once or not out.is_terminal:
        out.print(screen(watch.look(), out.width))
        return
    try:
        with Live(screen(watch.look(), out.width), console=out, screen=True, auto_refresh=False) as live:
            while trace.live():
                live.update(screen(watch.look(), out.width), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        pass
    out.print(screen(watch.look(), out.width))
