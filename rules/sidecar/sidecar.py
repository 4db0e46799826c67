"""Follows the runs below some directories."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stepwatch.probe.store import remote
from stepwatch.probe.store.discovery import is_run, runs_below
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.figures import Figures
from stepwatch.rules.sidecar.places import OldRuns, default_state_dir, records_of
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.run import Event, Said, WatchedRun
from stepwatch.rules.sidecar.states import States

_WALK_SHARE = 0.002  # of the time may be spent on looking for new runs
_REST_SHARE = 0.005  # of the time may be spent on looking at runs in which nothing happens
_REST_OF_SILENCE = 0.05
_LONGEST_REST = 5.0
_WALK_SECONDS = 1.0
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_CLOSE_SECONDS = 20.0


def collect_garbage_seldom() -> None:
    """For a process that is a sidecar and nothing else: what rules know is kept, and rarely holds a cycle.

    Looking through it for cycles every 700 new objects took a quarter of the time with 2,000 ranks.
    """
    gc.set_threshold(50_000, 20, 20)


class Sidecar:
    """Judges every run below the directories, also those that appear later, and acts on what is found.

    It may be killed at any moment: what is found is derived from the runs again, and what was done is recorded.

    Args:
        directories: runs, or directories that hold runs at any depth.
        find: the policy for a run, or None where it is to be left alone.
        state_dir: where records of runs are kept that cannot be written;
            :func:`.places.default_state_dir` by default.

    Raises:
        TraceError: a directory does not exist.
    """

    def __init__(
        self, directories: Sequence[Path], find: Callable[[Trace], Policy | None], state_dir: Path | None = None
    ) -> None:
        for directory in directories:
            if not directory.is_dir():
                what = "is a file; expected a directory" if directory.exists() else "no such directory"
                raise TraceError(f"{directory}: {what}")
        self._state_dir = state_dir or default_state_dir()
        self._states = States(self._state_dir)
        self._states.forget_gone()
        self._places = [(directory, OldRuns(directory, self._state_dir)) for directory in directories]
        self._find = find
        self._runs: dict[Path, WatchedRun] = {}
        self._left_alone: set[Path] = set()
        self._outdated: set[Path] = set()
        self._troubles: dict[Path, _Trouble] = {}
        self._next_walk = 0.0
        self._resting: dict[Path, float] = {}
        self._longest_rest = 0.0

    def look(self) -> Iterator[Event]:
        """Judge what is new in every run, and act on it."""
        if time.monotonic() >= self._next_walk:
            yield from self._refresh()
            yield from self._search()
        began = time.monotonic()
        for path, run in list(self._runs.items()):
            trouble = self._troubles.get(path)
            if (trouble is not None and not trouble.due()) or self._resting.get(path, 0.0) > began:
                continue
            try:
                if path in self._outdated and (run.idle or not run.acting):
                    yield from self._renew(path, run)
                else:
                    yield from run.look()
                self._troubles.pop(path, None)
                self._resting[path] = began + min(_REST_OF_SILENCE * run.silent, self._longest_rest)
            except (TraceError, OSError) as error:
                yield from self._troubled(path, error)
        # Where a round takes no time to speak of there is nothing to be saved.
        self._longest_rest = min((time.monotonic() - began) / _REST_SHARE, _LONGEST_REST)
        due = self._states.due(path for path, run in self._runs.items() if run.unkept)
        if due is not None:
            self._runs[due].keep()

    def renew(self) -> None:
        """Policies have changed: look for that of each live run again, as soon as none of its actions is under way."""
        self._left_alone.clear()
        self._outdated = {path for path, run in self._runs.items() if not run.ended}

    def all_ended(self) -> bool:
        """Whether there is a run, and none is live."""
        return bool(self._runs) and all(run.ended for run in self._runs.values())

    def count(self, *, ended: bool) -> int:
        """How many runs there are that have, or have not, ended."""
        return sum(run.ended is ended for run in list(self._runs.values()))

    @property
    def unreadable(self) -> int:
        """How many runs cannot be read now."""
        return len(self._troubles)

    @property
    def steps(self) -> int:
        """How many steps of live runs were judged."""
        return sum(run.steps for run in list(self._runs.values()))

    def figures(self) -> list[tuple[str, str, Figures]]:
        """Name of the job, place and figures of each live run of which a step was judged."""
        runs = [(run.trace, run.figures) for run in list(self._runs.values())]
        return [
            (trace.info.job_name, str(trace.source), figures)
            for trace, figures in runs
            if figures is not None and figures.step >= 0
        ]

    def close(self) -> None:
        """Finish the actions under way, for at most 20 seconds, and let another sidecar act."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        for run in self._runs.values():
            run.close(max(0.0, deadline - time.monotonic()))

    def _refresh(self) -> Iterator[Event]:
        """Of prefixes in object stores, fetch what has come below them."""
        for directory, _ in self._places:
            try:
                remote.refresh(directory)
            except OSError as error:
                yield from self._troubled(directory, error)

    def _search(self) -> Iterator[Event]:
        """Take up runs that have appeared, and drop those that have gone."""
        for path in [path for path in self._runs if not is_run(path)]:
            yield Said(path, "has gone; no longer watched")
            self._runs.pop(path).close(_CLOSE_SECONDS)
            self._states.forget(path)
            self._outdated.discard(path)
            self._resting.pop(path, None)
        began, took = time.monotonic(), 0.0
        for directory, old in self._places:
            appeared: list[WatchedRun] = []
            walk = time.monotonic()
            below = list(runs_below(directory, of_smdebug=True))
            took += time.monotonic() - walk  # and not what a store takes, or a run to be opened
            for path in below:
                trouble = self._troubles.get(path)
                known = path in self._runs or path in self._left_alone
                if known or (trouble is not None and not trouble.due()):
                    continue
                try:
                    run = self._take_up(path, old)
                    if run is not None:
                        appeared.append(run)
                    elif path in self._left_alone:
                        yield Said(path, "no policy is for this run; it is left alone")
                    self._troubles.pop(path, None)
                except (TraceError, OSError) as error:
                    yield from self._troubled(path, error)
            if not old.known:
                yield from self._begin(directory, old, appeared)
        self._next_walk = began + max(_WALK_SECONDS, took / _WALK_SHARE)

    def _take_up(self, path: Path, old: OldRuns) -> WatchedRun | None:
        trace = Trace(path)
        if not trace.ranks:
            return None  # no rank has said yet that it began
        policy = self._find(trace)
        if policy is None:
            self._left_alone.add(path)
            return None
        records = records_of(path, trace.info.run_id, self._state_dir)
        act = old.known and not old.holds(trace.info.run_id, _attempts(trace))
        run = self._runs[path] = WatchedRun(trace, policy, records, self._states, act=act)
        return run

    def _renew(self, path: Path, run: WatchedRun) -> Iterator[Event]:
        """Go on with a run under the policy that is for it now."""
        self._outdated.discard(path)
        policy = self._find(run.trace)
        told = run.told if run.idle else set()  # one that looks on has not acted upon what it found
        run.close(_CLOSE_SECONDS)
        if policy is None:
            del self._runs[path]
            self._left_alone.add(path)
            yield Said(path, "no policy is for this run any more; it is left alone")
            return
        records = records_of(path, run.trace.info.run_id, self._state_dir)
        renewed = WatchedRun(run.trace, policy, records, self._states, act=run.act)
        renewed.told = told
        self._runs[path] = renewed

    def _begin(self, directory: Path, old: OldRuns, runs: list[WatchedRun]) -> Iterator[Event]:
        """The directory is watched for the first time."""
        for run in runs:
            run.act = run.trace.live()
        try:
            old.remember({run.trace.info.run_id: _attempts(run.trace) for run in runs if not run.act})
        except OSError as error:
            yield Said(directory, f"which runs were over before cannot be remembered: {error}")

    def _troubled(self, path: Path, error: Exception) -> Iterator[Event]:
        """Say what is wrong with a run, once, and try again later, at growing intervals."""
        trouble = self._troubles.setdefault(path, _Trouble())
        text = str(error).removeprefix(f"{path}: ")
        if text != trouble.text:
            yield Said(path, text)
        trouble.again(text)


class _Trouble:
    """A run that cannot be read now."""

    def __init__(self) -> None:
        self.text = ""
        self._pause = _FIRST_PAUSE
        self._next = 0.0

    def due(self) -> bool:
        """Whether it is time to try again."""
        return time.monotonic() >= self._next

    def again(self, text: str) -> None:
        """It failed again."""
        self._pause = _FIRST_PAUSE if text != self.text else min(2 * self._pause, _LONGEST_PAUSE)
        self.text = text
        self._next = time.monotonic() + self._pause


def _attempts(trace: Trace) -> int:
    return sum(len(trace.attempts(rank).entries) for rank in trace.ranks)
