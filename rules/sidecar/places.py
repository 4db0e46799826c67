"""What a sidecar remembers of a directory, and where its records of a run are."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.layout import write_json
from stepwatch.probe.store.rankfile import read_json
from stepwatch.probe.store.smdebug.profiler import is_importable

_MARKER = ".stepwatch-watch.json"


def default_state_dir() -> Path:
    """Where state is kept of what cannot be written: ``$XDG_STATE_HOME/stepwatch``."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "stepwatch"


def records_of(run_dir: Path, run_id: str, state_dir: Path) -> Path:
    """Where findings, actions and the lease of a run are kept: in the run, or in the state directory where it cannot be
    written, or is a directory of smdebug's.

    Raises:
        OSError: the state directory cannot be written.
    """
    if os.access(run_dir, os.W_OK) and not is_importable(run_dir):
        return run_dir
    records = state_dir / "runs" / run_id
    records.mkdir(parents=True, exist_ok=True)
    return records


class OldRuns:
    """Runs that were over before anybody watched a directory: they are judged, and not acted upon.

    Remembered in the directory, so that a run that began and ended while the sidecar was down is not taken for
    one of them. No clock is asked.

    Args:
        directory: the directory that is watched.
        state_dir: where this is remembered of a directory that cannot be written.
    """

    def __init__(self, directory: Path, state_dir: Path) -> None:
        self._path = directory / _MARKER
        if not os.access(directory, os.W_OK):
            name = hashlib.sha1(str(directory.resolve()).encode()).hexdigest()[:16]
            self._path = state_dir / "directories" / f"{name}.json"
        try:
            self._known: dict[str, int] | None = read_json(self._path).get("over_before")
        except TraceError:
            self._known = None

    @property
    def known(self) -> bool:
        """Whether the directory has been watched before."""
        return self._known is not None

    def remember(self, runs: dict[str, int]) -> None:
        """The directory is watched from now on; these runs, ids with numbers of attempts, are over.

        Raises:
            OSError: it cannot be written.
        """
        self._known = dict(runs)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {"over_before": self._known})

    def holds(self, run_id: str, attempts: int) -> bool:
        """Whether the run was over then, and has not been started again since."""
        return (self._known or {}).get(run_id) == attempts
