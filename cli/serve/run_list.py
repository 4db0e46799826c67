"""The runs below a directory: how each stands, looked at again when it has changed."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepwatch.cli.report.page import write_report
from stepwatch.probe.store.discovery import runs_below
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.finding import json_tree
from stepwatch.rules.step import is_loss

log = logging.getLogger("stepwatch")

_KEPT_REPORTS = 20
_WATCHED = ("steps", "stats", "scalars", "findings", "ranks", "end", "control")


@dataclass(frozen=True)
class Row:
    """How a run stands.

    Attributes:
        run: its directory, relative to the one that is served.
        job, status, started_ns: of run.json, and :meth:`Trace.status`.
        step: the last step recorded; None where there is none.
        loss: the last value of a training loss.
        findings: names of the rules that found something while it ran.
        version: another one whenever the run has changed.
        error: why it cannot be read; then nothing else is known.
    """

    run: str
    job: str = ""
    status: str = "unreadable"
    started_ns: int = 0
    step: int | None = None
    loss: float | None = None
    findings: tuple[str, ...] = ()
    version: str = ""
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        content: dict[str, Any] = json_tree(asdict(self))
        return content


class RunList:
    """Runs below a directory. Safe to use from several threads.

    Args:
        root: the directory, or a run.
        specs: the rules that reports judge with.
    """

    def __init__(self, root: Path, specs: list[RuleSpec]) -> None:
        self.root = root
        self._specs = specs
        self._rows: dict[str, Row] = {}
        self._reports: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._looking = threading.Lock()
        self._writing = threading.Lock()

    def look(self) -> None:
        """Look for new runs, and at those that have changed; where that is under way, wait for it."""
        with self._looking:
            found = {str(path.relative_to(self.root)): path for path in runs_below(self.root)}
            for gone in self._rows.keys() - found.keys():
                del self._rows[gone]
            for name, path in found.items():
                version = _version(path)
                known = self._rows.get(name)
                # A run that was killed says nothing: whether one lives is asked each time.
                if known is None or known.version != version or known.status == "live":
                    self._rows[name] = _row(name, path, version)

    def rows(self) -> list[Row]:
        """What the last look found, the latest first."""
        return sorted(list(self._rows.values()), key=lambda row: (-row.started_ns, row.run))

    def row(self, run: str) -> Row | None:
        """A run that the last look found."""
        return self._rows.get(run)

    def report(self, run: str) -> bytes | None:
        """The report's page about a run as it is now; None where there is no such run.

        Raises:
            TraceError, OSError: the run cannot be read.
        """
        if run not in self._rows:
            return None
        path = self.root / run
        key = (run, _version(path))
        with self._writing:
            page = self._reports.get(key)
            if page is None:
                with tempfile.TemporaryDirectory(prefix="stepwatch-") as folder:
                    page = write_report(Trace(path), Path(folder) / "report.html", self._specs).read_bytes()
                for old in [known for known in self._reports if known[0] == run]:
                    del self._reports[old]
                self._reports[key] = page
                while len(self._reports) > _KEPT_REPORTS:
                    self._reports.popitem(last=False)
        return page


def _version(path: Path) -> str:
    """The time of the last change of any folder of the run."""
    newest = 0
    for table in _WATCHED:
        for folder in (path / table, *_folders(path / table)):
            try:
                newest = max(newest, folder.stat().st_mtime_ns)
            except OSError:
                continue
    return str(newest)


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _row(name: str, path: Path, version: str) -> Row:
    try:
        trace = Trace(path)
        ranks = trace.ranks[:1]
        steps = trace.table("steps", columns=["step"], ranks=ranks)["step"]
        scalars = trace.table(
            "scalars", columns=["name", "mode", "step", "value"], ranks=ranks, modes=["TRAIN", "GLOBAL"]
        ).to_pandas()
        losses = scalars[scalars["name"].map(is_loss)]
        last = losses.loc[losses["step"].idxmax(), "value"] if len(losses) else None
        return Row(
            run=name,
            job=trace.info.job_name,
            status=trace.status(),
            started_ns=trace.info.start_ns,
            step=max(steps.to_pylist(), default=None),
            loss=None if last is None else float(last),
            findings=tuple(dict.fromkeys(row["rule"] for row in trace.findings())),
            version=version,
        )
    except (ValueError, OSError) as error:
        return Row(run=name, version=version, error=str(error))
