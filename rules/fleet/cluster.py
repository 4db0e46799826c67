"""Judges many runs on a cluster of Dask workers."""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import ExitStack
from typing import Any

from stepwatch.rules.apart import processors
from stepwatch.rules.catalogue import RuleSpec, configure
from stepwatch.rules.fleet.judged import Judged, Place, judge_run

_UNDER_WAY = 4  # runs per worker that the scheduler knows of, so that none waits for us
_LOOK_SECONDS = 5.0
_ALONE_SECONDS = 120.0  # without a single worker, after which there is no use in waiting
_NO_DASHBOARD: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}


class ClusterError(ValueError):
    """A cluster that cannot be used."""


def judge_on_cluster(
    runs: Sequence[Place], rules: Sequence[str] | None, settings: Sequence[str] = (), processes: int | None = None
) -> Iterator[Judged]:
    """Judge many runs on Dask workers, as they are done; what a worker that dies had under way is done by others.

    The cluster is the one whose scheduler Dask is configured to use (DASK_SCHEDULER_ADDRESS), otherwise one of this
    machine's processes. Its workers need Stepwatch, and must see the runs under the same paths or URLs.

    Args:
        runs: their directories or URLs.
        rules, settings: as for :func:`stepwatch.rules.catalogue.configure`; files of rules must be where workers see
            them.
        processes: workers of a cluster on this machine; by default one per processor.

    Raises:
        RuleError: a name, parameter or value that cannot be used.
        ImportError: Dask's scheduler is not installed.
        ClusterError: the scheduler does not answer.
    """
    configure(rules, settings)
    with ExitStack() as stack:
        client = _connect(stack, processes or processors())
        judge = functools.partial(
            judge_as_task, rules=None if rules is None else tuple(rules), settings=tuple(settings)
        )
        executor = client.get_executor(pure=False)
        stack.callback(executor.shutdown, wait=False)
        waiting = deque(runs)
        under_way: dict[Future[Judged], Place] = {}
        seen = time.monotonic()
        while waiting or under_way:
            workers = len(client.scheduler_info(n_workers=-1)["workers"])
            while waiting and len(under_way) < _UNDER_WAY * max(workers, 1):
                run = waiting.popleft()
                under_way[executor.submit(judge, str(run))] = run
            done, _ = wait(under_way, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                yield _result(future, under_way.pop(future))
            if workers or done:
                seen = time.monotonic()
            elif time.monotonic() - seen > _ALONE_SECONDS:
                for run in [*under_way.values(), *waiting]:
                    yield Judged(run, None, f"{run}: the cluster has no worker that could judge it")
                return


def judge_as_task(run: str, rules: tuple[str, ...] | None, settings: tuple[str, ...]) -> Judged:
    """Judge one run, in a worker."""
    return judge_run(run, _specs(rules, settings))


@functools.lru_cache(maxsize=4)
def _specs(rules: tuple[str, ...] | None, settings: tuple[str, ...]) -> list[RuleSpec]:
    return configure(rules, settings)


def _connect(stack: ExitStack, workers: int) -> Any:
    try:
        import dask
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        raise ImportError(f"--engine dask needs {error.name}: pip install 'stepwatch[dask]'") from None
    address = dask.config.get("scheduler-address", None)
    if address is None:
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, silence_logs=logging.CRITICAL, **_NO_DASHBOARD)
        return stack.enter_context(Client(stack.enter_context(cluster)))
    try:
        return stack.enter_context(Client(address))
    except (OSError, ValueError) as error:
        raise ClusterError(f"the Dask scheduler at {address} does not answer: {error}") from None


def _result(future: Future[Judged], run: Place) -> Judged:
    from distributed import KilledWorker

    try:
        judged = future.result()
    except KilledWorker:
        return Judged(run, None, f"{run}: several workers that judged it died, for lack of memory perhaps")
    except (CancelledError, Exception) as error:
        return Judged(run, None, f"{run}: {type(error).__name__}: {error}")
    return Judged(**{**vars(judged), "run": run})
