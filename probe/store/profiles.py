"""RUN/profiles: what torch.profiler recorded of some steps.

RUN/profiles/step=00000120/rank=00000.about.json     which steps, who asked; it appears when the rest is there
RUN/profiles/step=00000120/rank=00000.trace.json.gz  the trace as torch.profiler exports it
RUN/profiles/step=00000120/rank=00000.summary.json   its summary, made by whoever asks for it first
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.layout import write_json
from stepwatch.probe.store.rankfile import read_json

if TYPE_CHECKING:
    from stepwatch.probe.store.kineto.summary import Summary

log = logging.getLogger("stepwatch")

MOST_PROFILES = 20
"""Most profiles that a rank keeps in a run."""

_SUMMARY_VERSION = 1
_FOLDER = re.compile(r"^step=(\d{8,18})$")
_ABOUT = re.compile(r"^rank=(\d{5,9})\.about\.json$")


@dataclass(frozen=True)
class Profile:
    """Some steps of one rank that were profiled.

    Attributes:
        run_dir: the run.
        rank: the rank.
        step: the first step.
        steps: how many there are.
        by, reason: who asked for it, and why.
        paused_seconds: for how long the training stood still to start and stop the profiler.
        source: the trace's own file where it was imported, "" where it is kept in the run.
    """

    run_dir: Path
    rank: int
    step: int
    steps: int
    by: str
    reason: str
    paused_seconds: float = 0.0
    source: str = ""

    @property
    def trace(self) -> Path:
        """The trace, which Perfetto opens."""
        return Path(self.source) if self.source else self._file("trace.json.gz")

    def prepare(self) -> None:
        """Make its folder, without what an earlier attempt of the job left of the same step."""
        self._file("about.json").parent.mkdir(parents=True, exist_ok=True)
        for name in ("about.json", "summary.json", "trace.json.gz"):
            self._file(name).unlink(missing_ok=True)

    def publish(self) -> None:
        """Say that it is there."""
        content = {key: value for key, value in asdict(self).items() if key not in ("run_dir", "rank", "step")}
        write_json(self._file("about.json"), content)

    def keep_summary(self, summary: Summary) -> None:
        """Store its summary.

        Raises:
            OSError: the run cannot be written.
        """
        write_json(self._file("summary.json"), {"version": _SUMMARY_VERSION, **summary.to_json()})

    def summary(self) -> Summary:
        """What the trace tells; kept beside it, where the run can be written.

        Raises:
            TraceError: the trace cannot be read.
        """
        from stepwatch.probe.store.kineto.parsing import read_kineto
        from stepwatch.probe.store.kineto.summary import Summary, summarise

        try:
            content = read_json(self._file("summary.json"))
            if content.pop("version", None) == _SUMMARY_VERSION:
                return Summary.from_json(content)
        except (TraceError, KeyError, TypeError) as error:
            log.warning("%s is made anew: %s", self._file("summary.json"), error)
        try:
            summary = summarise(read_kineto(self.trace), self.rank)
        except OSError as error:
            raise TraceError(f"{self.trace}: {error.strerror}") from None
        try:
            self.keep_summary(summary)
        except OSError:
            log.debug("%s cannot be written", self.run_dir)
        return summary

    def _file(self, name: str) -> Path:
        return self.run_dir / "profiles" / f"step={self.step:08d}" / f"rank={self.rank:05d}.{name}"


def profiles_of(run_dir: Path) -> list[Profile]:
    """The profiles of a run by step and rank.

    Raises:
        TraceError: a file that says what one of them is, is damaged.
    """
    found = []
    for folder in _names(run_dir / "profiles"):
        step = _FOLDER.match(folder)
        for name in _names(run_dir / "profiles" / folder) if step else ():
            rank = _ABOUT.match(name)
            if step and rank:
                content = read_json(run_dir / "profiles" / folder / name)
                found.append(_profile(run_dir, int(rank[1]), int(step[1]), content))
    return sorted(found, key=lambda profile: (profile.step, profile.rank))


def _profile(run_dir: Path, rank: int, step: int, content: dict[str, Any]) -> Profile:
    return Profile(
        run_dir=run_dir,
        rank=rank,
        step=step,
        steps=int(content.get("steps", 0)),
        by=str(content.get("by", "")),
        reason=str(content.get("reason", "")),
        paused_seconds=float(content.get("paused_seconds", 0.0)),
        source=str(content.get("source", "")),
    )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
