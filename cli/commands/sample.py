"""``stepwatch sample``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from stepwatch.cli import errors


@click.command("sample", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Directory of the run; runs/NAME-TIME by default.")
@click.option("--pid", type=click.IntRange(min=1), help="A job that runs already: the number of its first process.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.05, max=60),
    default=0.5,
    show_default=True,
    help="Seconds between samples.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@errors.one_line_errors
def command(out: Path | None, pid: int | None, interval: float, command: tuple[str, ...]) -> None:
    """Record what a job that has no hook does to its machine: COMMAND with its arguments, or a process that runs.

    Its processes, the node, its disks and network and the GPUs are sampled into a run, which every other command
    takes: `stepwatch watch`, `analyze`, `report`, `top`. There are no steps and no tensors in it; `stepwatch run`
    records a training script with them.

    Exit status: the command's; 0 for a process that ran already.
    """
    if bool(command) == bool(pid):
        errors.fail("expected a command to start, or --pid of a job that runs" + (", not both" if pid else ""))
    from stepwatch.probe.outside import NoSuchJob, sample_job

    name = Path(command[0]).name if command else f"pid{pid}"
    run = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        raise SystemExit(sample_job(run, pid or command, interval))
    except NoSuchJob as error:
        errors.fail(error)
