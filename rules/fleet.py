"""Judges many runs, in several processes, and sums up what they have in common."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.apart import processors
from stepwatch.rules.catalogue import RuleSpec, configure
from stepwatch.rules.finding import Severity
from stepwatch.rules.replay import Analysis, analyze

_PER_PROCESS = 8  # runs for which it is worth while to start another process


@dataclass(frozen=True)
class Judged:
    """A run and what the rules say of it.

    Attributes:
        run: its directory.
        analysis: the verdicts; None where it could not be judged.
        error: why it could not.
        seconds: from its first recorded step to its last.
        wasted_seconds: of these, those after the step at which an error (a finding of that severity) was certain.
    """

    run: Path
    analysis: Analysis | None
    error: str = ""
    seconds: float = 0.0
    wasted_seconds: float = 0.0


@dataclass(frozen=True)
class Problem:
    """A rule that found something in several runs.

    Attributes:
        rule: its name.
        runs: where, in the order in which they were judged.
        first_step: the median of the steps at which it first began in a run.
    """

    rule: str
    runs: list[Path]
    first_step: float


@dataclass
class Summary:
    """What many runs have in common.

    Attributes:
        runs: number of runs, those that could not be judged included.
        with_issues, undecided, failed: how many had findings, had none and were not decided by any rule, could not
            be judged.
        problems: by how many runs have them.
        hours, wasted_hours: sums of the runs' ``seconds`` and ``wasted_seconds``.
    """

    runs: int = 0
    with_issues: int = 0
    undecided: int = 0
    failed: int = 0
    problems: list[Problem] = field(default_factory=list)
    hours: float = 0.0
    wasted_hours: float = 0.0


def judge_run(run: Path, specs: Sequence[RuleSpec]) -> Judged:
    """Judge one run; a run that cannot be read is one with an error."""
    try:
        trace = Trace(run)
        analysis = analyze(trace, specs)
        seconds, wasted = _seconds(trace, analysis)
    except (TraceError, OSError) as error:
        return Judged(run, None, str(error))
    except Exception as error:
        return Judged(run, None, f"{run}: {type(error).__name__}: {error}")
    return Judged(run, analysis, "", seconds, wasted)


def judge_runs(
    runs: Sequence[Path], rules: Sequence[str] | None, settings: Sequence[str] = (), processes: int | None = None
) -> Iterator[Judged]:
    """Judge many runs, as they are done, each on its own: one that fails, or ends the process, does not harm others.

    Args:
        runs: their directories.
        rules, settings: as for :func:`stepwatch.rules.catalogue.configure`.
        processes: how many; by default as many as there are processors, but no more than eight runs each are worth.

    Raises:
        RuleError: a name, parameter or value that cannot be used.
    """
    specs = configure(rules, settings)
    count = processes or min(processors(), max(1, len(runs) // _PER_PROCESS))
    if count == 1:
        yield from (judge_run(run, specs) for run in runs)
        return
    suspects: list[Path] = []
    with _Pool(count, rules, settings) as pool:
        yield from pool.judge(runs, suspects.append)
    for run in suspects:
        # One of those that were under way when a process died; alone it shows which.
        with _Pool(1, rules, settings) as pool:
            died: list[Path] = []
            yield from pool.judge([run], died.append)
            for each in died:
                yield Judged(each, None, f"{each}: the process that judged it died, for lack of memory perhaps")


def summarise(judged: Iterable[Judged]) -> Summary:
    """What the runs have in common."""
    summary = Summary()
    found: dict[str, dict[Path, int]] = {}
    for each in judged:
        summary.runs += 1
        summary.hours += each.seconds / 3600
        summary.wasted_hours += each.wasted_seconds / 3600
        if each.analysis is None:
            summary.failed += 1
        elif each.analysis.findings:
            summary.with_issues += 1
            for finding in each.analysis.findings:
                steps = found.setdefault(finding.rule, {})
                steps[each.run] = min(finding.first_step, steps.get(each.run, finding.first_step))
        elif not any(result.coverage.decided for result in each.analysis.results):
            summary.undecided += 1
    problems = [Problem(rule, list(steps), float(np.median(list(steps.values())))) for rule, steps in found.items()]
    summary.problems = sorted(problems, key=lambda problem: (-len(problem.runs), problem.rule))
    return summary


class _Pool:
    """Processes that judge runs; replaced when one of them dies."""

    def __init__(self, count: int, rules: Sequence[str] | None, settings: Sequence[str]) -> None:
        self._count = count
        self._arguments = (rules, settings)
        self._executor = self._start()

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def judge(self, runs: Sequence[Path], suspect: Callable[[Path], None]) -> Iterator[Judged]:
        """Judge runs; ``suspect`` is told of those that were under way when a process died."""
        waiting = deque(runs)
        under_way: dict[Future[Judged], Path] = {}
        while waiting or under_way:
            while waiting and len(under_way) < 2 * self._count:
                run = waiting.popleft()
                under_way[self._executor.submit(_judge_in_process, run)] = run
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            broken = False
            for future in done:
                run = under_way.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    broken = True
                    suspect(run)
            if broken:
                for run in under_way.values():
                    suspect(run)
                under_way.clear()
                self._executor.shutdown(wait=True, cancel_futures=True)
                self._executor = self._start()

    def _start(self) -> ProcessPoolExecutor:
        # Not forked from here: Arrow's threads would not be there in the child.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._count, context, _configure_process, self._arguments)


_specs: list[RuleSpec] = []


def _configure_process(rules: Sequence[str] | None, settings: Sequence[str]) -> None:
    import pyarrow as pa

    pa.set_cpu_count(1)  # the processors are taken by processes
    _specs[:] = configure(rules, settings)


def _judge_in_process(run: Path) -> Judged:
    return judge_run(run, _specs)


def _seconds(trace: Trace, analysis: Analysis) -> tuple[float, float]:
    rows = trace.table("steps", columns=["step", "time_ns"])
    if not rows.num_rows:
        return 0.0, 0.0
    steps, times = rows["step"].to_numpy(), rows["time_ns"].to_numpy()
    lost = [finding.last_step for finding in analysis.findings if finding.severity is Severity.ERROR]
    last = times.max()
    wasted = 0.0
    if lost:
        certain = times[steps >= min(lost)]
        wasted = float(last - certain.min()) / 1e9 if len(certain) else 0.0
    return float(last - times.min()) / 1e9, wasted
