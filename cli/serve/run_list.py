"""The runs below a directory: how each stands, looked at again when it has changed."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

from stepwatch.cli.overview import Overview, overview
from stepwatch.cli.report.page import write_report
from stepwatch.probe.store.discovery import runs_below
from stepwatch.probe.store.labels import BASELINE_FILE
from stepwatch.probe.store.layout import LABELS_FILE
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import RuleSpec

log = logging.getLogger("stepwatch")

_KEPT_REPORTS = 20
_WATCHED = ("steps", "stats", "scalars", "findings", "ranks", "end", "control")


class RunList:
    """Runs below a directory. Safe to use from several threads.

    Args:
        root: the directory, or a run.
        specs: the rules that reports judge with.
    """

    def __init__(self, root: Path, specs: list[RuleSpec]) -> None:
        self.root = root
        self._specs = specs
        self._rows: dict[str, Overview] = {}
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
                    self._rows[name] = overview(path, name, version)

    def rows(self) -> list[Overview]:
        """What the last look found, the latest first."""
        return sorted(list(self._rows.values()), key=lambda row: (-row.started_ns, row.run))

    def row(self, run: str) -> Overview | None:
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
    """The time of the last change of any folder of the run, or of what is said of it."""
    newest = [_changed(path / LABELS_FILE), _changed(path.parent / BASELINE_FILE)]
    for table in _WATCHED:
        newest += [_changed(folder) for folder in (path / table, *_folders(path / table))]
    return str(max(newest))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir()]
    except OSError:
        return []
