"""Follows the runs below some directories, judges what is new and acts on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from stepwatch.cli.render import console, finding_block
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.actions import Action, Dispatcher
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.replay import LiveAnalysis


class _Run:
    def __init__(self, path: Path, specs: Sequence[RuleSpec], actions: Sequence[Action]) -> None:
        self.trace = Trace(path)
        self.analysis = LiveAnalysis(self.trace, specs)
        self.dispatcher = Dispatcher(path, actions, judged_by="watch")
        self.ended = False


class Watcher:
    """Judges every run below the directories, also those that appear later.

    Args:
        directories: runs, or directories of runs.
        specs: the rules.
        actions: what to do about findings of live runs.

    Raises:
        TraceError: a directory does not exist.
    """

    def __init__(self, directories: Sequence[Path], specs: Sequence[RuleSpec], actions: Sequence[Action]) -> None:
        for directory in directories:
            if not directory.is_dir():
                what = "is a file; expected a directory" if directory.exists() else "no such directory"
                raise TraceError(f"{directory}: {what}")
        self._directories = list(directories)
        self._specs = list(specs)
        self._actions = list(actions)
        self._runs: dict[Path, _Run] = {}
        self._refused: set[Path] = set()
        self._out = console()
        self.found = 0

    def look(self) -> None:
        """Judge what is new in every run."""
        for path in self._paths():
            run = self._run(path)
            if run is None or run.ended:
                continue
            live = run.trace.live()
            findings = run.analysis.poll() if live else run.analysis.conclude()
            for finding in findings:
                self.found += 1
                self._out.print(f"{path}:", style="bold")
                self._out.print(finding_block(finding))
            if findings and live:
                run.dispatcher.dispatch(findings)
            if not live:
                run.ended = True
                self._out.print(f"{path}: ended, {len(run.analysis.analysis(live=False).findings)} issues found")

    def all_ended(self) -> bool:
        """Whether there is a run, and none is live."""
        return bool(self._runs) and all(run.ended for run in self._runs.values())

    @contextmanager
    def events(self) -> Iterator[threading.Event]:
        """An event that is set when something below the directories changes."""
        changed = threading.Event()
        observer = Observer()
        handler = _Waker(changed)
        for directory in self._directories:
            observer.schedule(handler, str(directory), recursive=True)
        observer.start()
        try:
            yield changed
        finally:
            observer.stop()
            observer.join()

    def _paths(self) -> Iterator[Path]:
        for directory in self._directories:
            if (directory / "run.json").exists():
                yield directory
            else:
                yield from sorted(marker.parent for marker in directory.glob("*/run.json"))

    def _run(self, path: Path) -> _Run | None:
        if path not in self._runs and path not in self._refused:
            try:
                self._runs[path] = _Run(path, self._specs, self._actions)
            except TraceError as error:
                self._refused.add(path)
                self._out.print(f"stepwatch: {error}", style="yellow")
        return self._runs.get(path)


class _Waker(FileSystemEventHandler):
    def __init__(self, changed: threading.Event) -> None:
        self._changed = changed

    def on_moved(self, event: FileSystemEvent) -> None:
        """A file has got its final name."""
        self._changed.set()

    def on_created(self, event: FileSystemEvent) -> None:
        """A run may have appeared."""
        self._changed.set()
