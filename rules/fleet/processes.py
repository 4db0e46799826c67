"""Judges many runs in several processes of this machine."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from stepwatch.rules.apart import processors
from stepwatch.rules.catalogue import RuleSpec, configure
from stepwatch.rules.fleet.judged import Judged, Place, judge_run

_PER_PROCESS = 8  # runs for which it is worth while to start another process


def judge_runs(
    runs: Sequence[Place], rules: Sequence[str] | None, settings: Sequence[str] = (), processes: int | None = None
) -> Iterator[Judged]:
    """Judge many runs, as they are done, each on its own: one that fails, or ends the process, does not harm others.

    Args:
        runs: their directories or URLs.
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
    suspects: list[Place] = []
    with _Pool(count, rules, settings) as pool:
        yield from pool.judge(runs, suspects.append)
    for run in suspects:
        # One of those that were under way when a process died; alone it shows which.
        with _Pool(1, rules, settings) as pool:
            died: list[Place] = []
            yield from pool.judge([run], died.append)
            for each in died:
                yield Judged(each, None, f"{each}: the process that judged it died, for lack of memory perhaps")


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

    def judge(self, runs: Sequence[Place], suspect: Callable[[Place], None]) -> Iterator[Judged]:
        """Judge runs; ``suspect`` is told of those that were under way when a process died."""
        waiting = deque(runs)
        under_way: dict[Future[Judged], Place] = {}
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


def _judge_in_process(run: Place) -> Judged:
    return judge_run(run, _specs)
