"""``stepwatch export``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepwatch.cli import errors
from stepwatch.cli.progress import busy

if TYPE_CHECKING:
    from stepwatch.probe.store.reader import Trace


def _smdebug(trace: Trace, destination: Path, ranks: tuple[int, ...]) -> str:
    from stepwatch.probe.store.smdebug.exporting import export_smdebug

    if ranks:
        errors.fail("--format smdebug writes all ranks; leave out --rank")
    return f"{export_smdebug(trace, destination)} steps"


def _chrome(trace: Trace, destination: Path, ranks: tuple[int, ...]) -> str:
    from stepwatch.cli.chrome import export_chrome
    from stepwatch.rules.catalogue import configure
    from stepwatch.rules.replay import analyze

    findings = analyze(trace, configure(None)).findings
    return f"{export_chrome(trace, destination, findings, list(ranks) or None)} events"


def _csv(trace: Trace, destination: Path, ranks: tuple[int, ...]) -> str:
    from stepwatch.cli.export_tables import export_tables

    return f"{export_tables(trace, destination, 'csv', list(ranks) or None)} rows"


def _tensorboard(trace: Trace, destination: Path, ranks: tuple[int, ...]) -> str:
    from stepwatch.cli.export_tensorboard import export_tensorboard

    return f"{export_tensorboard(trace, destination, list(ranks) or None)} values"


def _arrow(trace: Trace, destination: Path, ranks: tuple[int, ...]) -> str:
    from stepwatch.cli.export_tables import export_tables

    return f"{export_tables(trace, destination, 'arrow', list(ranks) or None)} rows"


def _wandb(trace: Trace, destination: Path, ranks: tuple[int, ...]) -> str:
    from stepwatch.cli.export_trackers import export_wandb

    return (
        f"{export_wandb(trace, destination, ranks)} values; wandb sync {destination}/wandb/offline-run-* uploads them"
    )


def _mlflow(trace: Trace, destination: Path, ranks: tuple[int, ...]) -> str:
    from stepwatch.cli.export_trackers import export_mlflow

    return f"{export_mlflow(trace, destination, ranks)} values; mlflow ui --backend-store-uri {destination} shows them"


_FORMATS: dict[str, Callable[[Trace, Path, tuple[int, ...]], str]] = {
    "arrow": _arrow,
    "chrome": _chrome,
    "csv": _csv,
    "mlflow": _mlflow,
    "smdebug": _smdebug,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(list(_FORMATS)), required=True, help="What to write.")
@click.option("--rank", "ranks", type=int, multiple=True, help="Ranks that are written; all by default.")
@errors.one_line_errors
def command(run: Path, destination: Path, form: str, ranks: tuple[int, ...]) -> None:
    """Write a RUN in a format of other tools.

    chrome: steps, phases, counters and findings as one file for Perfetto (ui.perfetto.dev) or chrome://tracing;
    compressed where its name ends in .gz.

    csv, arrow: a new directory with a file per table: scalars, stats, steps, system, findings.

    wandb, mlflow: a new directory with an offline run of W&B, or a file store of MLflow, by their own clients: scalars,
    and of each tensor its root mean square, of one rank.

    tensorboard: a new directory of event files: scalars, and of each tensor its root mean square and largest magnitude,
    at no more than 1,000 of the saved steps.

    smdebug: a new directory with whole tensors, scalars, and the statistics of all other tensors as saved reductions.
    """
    from stepwatch.probe.store.reader import Trace

    with busy("exporting"):
        written = _FORMATS[form](Trace(run), destination, ranks)
    click.echo(f"{destination}: {written}")
