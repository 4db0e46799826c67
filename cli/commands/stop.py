"""``stepwatch stop``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH

_POLL_SECONDS = 0.1


@click.command("stop")
@click.argument("run", type=RUN_PATH)
@click.option("--reason", default="asked for by a person", show_default=True, help="Recorded with the stop.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait for the job to stop; 0: do not.",
)
@click.option("--kill", is_flag=True, help="End a job that does not answer: SIGTERM, then SIGKILL.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="With --kill: seconds between SIGTERM and SIGKILL.",
)
@errors.one_line_errors
def command(run: Path, reason: str, wait: float, kill: bool, grace: float) -> None:
    """Ask a running job to stop at its next step, after its checkpoint.

    With --kill a job that does not answer in time is ended. Only the very processes that were recorded are
    signalled: same host, boot, number, start time, executable and user.

    Exit status: 0 stopped (or asked, with --wait 0), 1 no answer in time, 2 the run is not live.
    """
    from stepwatch.probe.store.control import read_acknowledgement, request_stop
    from stepwatch.probe.store.identity import process_identity
    from stepwatch.probe.store.reader import Trace

    trace = Trace(run)
    if not trace.live():
        errors.fail(f"{run}: the run is not live; there is nothing to stop")
    request = request_stop(run, reason, by=process_identity()["user"])
    if not wait and not kill:
        click.echo(f"{run}: asked to stop")
        return
    deadline = time.monotonic() + wait
    waiting = set(trace.ranks)
    while True:
        live = trace.live()  # asked first: a job answers before it ends
        for rank in sorted(waiting):
            answer = read_acknowledgement(run, rank)
            if answer is not None and answer.request_id == request and not answer.saving:
                waiting.discard(rank)
                saved = f"checkpoint {answer.checkpoint}" if answer.checkpoint else "no checkpoint"
                click.echo(f"rank {rank} stopped after {answer.step} steps, {saved}")
        if not waiting:
            return
        if not live:
            errors.fail(f"{run}: the job ended without an answer", errors.ISSUES_FOUND)
        if time.monotonic() > deadline:
            if kill:
                from stepwatch.rules.termination import terminate

                click.echo(f"{run}: no answer in {wait:g} s")
                if terminate(trace, grace, click.echo):
                    return
                errors.fail(f"{run}: not all of its processes could be ended", errors.ISSUES_FOUND)
            errors.fail(f"{run}: no answer in {wait:g} s; the request stands", errors.ISSUES_FOUND)
        time.sleep(_POLL_SECONDS)
        trace.refresh()
