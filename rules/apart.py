"""Judges a long run in two processes: the rules about time and machine beside the others."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.profiler.base import ProfilerRule
from stepwatch.rules.replay import Analysis, analyze

_WORTH_BYTES = 2_000_000
"""Samples for which it is worth while to start another process: some hours of them."""


class Judging:
    """Judges all that a run holds by now, as :func:`stepwatch.rules.replay.analyze`; begins at once.

    Only where the program's main module can be imported again, as a command's can: the process is not forked, for
    Arrow's threads would not be there in it.

    Args:
        trace: the run.
        specs: the rules.
    """

    def __init__(self, trace: Trace, specs: Sequence[RuleSpec]) -> None:
        self._trace = trace
        self._specs = list(specs)
        self._apart = [spec for spec in specs if _goes_apart(spec)]
        self._executor: ProcessPoolExecutor | None = None
        self._future: Future[Analysis] | None = None
        if self._apart and processors() > 1 and not trace.live() and _size(trace.path / "system") > _WORTH_BYTES:
            self._executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            self._future = self._executor.submit(_judge, trace.path, self._apart)

    def __enter__(self) -> Judging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def result(self) -> Analysis:
        """The verdicts."""
        if self._future is None:
            return analyze(self._trace, self._specs)
        here = analyze(self._trace, [spec for spec in self._specs if not _goes_apart(spec)])
        try:
            there = self._future.result()
        except BrokenProcessPool:  # killed, for lack of memory perhaps
            there = analyze(self._trace, self._apart)
        by_part = (iter(here.results), iter(there.results))
        results = [next(by_part[_goes_apart(spec)]) for spec in self._specs]
        findings = sorted([*here.findings, *there.findings], key=lambda finding: (finding.last_step, finding.rank))
        warnings = list(dict.fromkeys([*here.warnings, *there.warnings]))
        return Analysis(results, findings, here.live, here.notes, warnings, here.counters)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _goes_apart(spec: RuleSpec) -> bool:
    """Rules of this package only: another process may not find those that were read from a file."""
    return issubclass(spec.rule, ProfilerRule) and spec.rule.__module__.startswith("stepwatch.rules.")


def _judge(run: Path, specs: Sequence[RuleSpec]) -> Analysis:
    return analyze(Trace(run), specs)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.parquet"))
