"""Stops a job from outside: asks, and ends it where it does not answer."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stepwatch.probe.store.control import Acknowledgement, read_acknowledgement, read_request, request_stop
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.smdebug.importing import UNKNOWN_HOST
from stepwatch.rules.actions import is_of_an_earlier_attempt
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.sidecar.schedulers import NotRunning, SchedulerError, cancel, scheduled_as
from stepwatch.rules.termination import find_processes, terminate

log = logging.getLogger("stepwatch")

_POLL_SECONDS = 0.1
_PAUSES = (5.0, 30.0, 120.0, 600.0)


class EscalatingStop:
    """Stops the job after its checkpoint; where it does not answer, by SIGTERM and then SIGKILL.

    A job that has answered is left to end by itself. One that is saving its checkpoint is given the time that it
    needs, up to ten times that for an answer. One that cannot be ended is tried again, at growing intervals, as long
    as it runs, and every time is logged as an error. A job that was started again meanwhile is left alone.

    Args:
        answer: seconds to wait for the job's answer.
        grace: seconds between SIGTERM and SIGKILL.
        at_least: severity from which it stops.
        shout: told of a stop that failed, besides the log.
        scheduler: whether a job that does not answer is ended through its scheduler before it is signalled.
    """

    name = "stop"

    def __init__(
        self,
        *,
        answer: float = 60.0,
        grace: float = 30.0,
        at_least: Severity = Severity.ERROR,
        shout: Callable[[Path, str], None] | None = None,
        scheduler: bool = False,
    ) -> None:
        self._answer_seconds = answer
        self._grace = grace
        self.at_least = at_least
        self._shout = shout
        self._scheduler = scheduler

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Stop it; returns when it has stopped, or answered that it does."""
        trace = Trace(run_dir)
        done: list[str] = []

        def say(text: str) -> None:
            done.append(text)
            log.warning("%s: %s", run_dir, text)

        for pause in _pauses():
            try:
                if self._has_stopped(trace, finding, say, done.append):
                    return "; ".join(done)
                trouble = done[-1]
            except (OSError, TraceError) as error:  # a file system that is away comes back
                trouble = str(error)
            self._fail(run_dir, f"the job could not be stopped ({trouble}); trying again in {pause:g} s")
            time.sleep(pause)
        raise AssertionError("pauses do not end")

    def insist(self, run_dir: Path, stop: Callable[[], str]) -> str:
        """Stop a job by its scheduler alone, again and again until that takes it; every failure is told.

        Args:
            run_dir: the run.
            stop: stops it, and says what was done.

        Raises:
            SchedulerError: the scheduler cannot be asked for this job.
        """
        for pause in _pauses():
            try:
                return stop()
            except NotRunning as error:
                return f"nothing to stop: {error}"
            except SchedulerError as error:
                again = "" if error.final else f"; trying again in {pause:g} s"
                self._fail(run_dir, f"the job could not be stopped ({error}){again}")
                if error.final:
                    raise
            time.sleep(pause)
        raise AssertionError("pauses do not end")

    def _has_stopped(
        self, trace: Trace, finding: Finding, say: Callable[[str], None], note: Callable[[str], None]
    ) -> bool:
        """Try once; whether it has stopped, or answered that it does, or is not to be stopped any more."""
        why_not = _nothing_to_stop(trace, finding)
        if why_not:
            say(why_not)
            return True
        try:
            asked = _ask(trace, f"{finding.rule}: {finding.message}")
            if answers := self._await_answers(trace):
                for answer in answers:
                    (say if asked else note)(answer)  # to another finding's request it was said then
                return True
            say(f"no answer in {self._answer_seconds:g} s" if trace.live() else "the job has ended without an answer")
        except (OSError, TraceError) as error:
            say(f"it cannot be asked: {error}")
        return not trace.live() or self._cancelled(trace, say) or terminate(trace, self._grace, say)

    def _await_answers(self, trace: Trace) -> list[str]:
        """What every rank answered, in words; nothing where one did not in time, or the job ended without."""
        began = time.monotonic()
        while True:
            live = trace.live()  # asked first: a job answers before it ends
            answers = {rank: _answer(trace, rank) for rank in trace.ranks}
            given = {rank: answer for rank, answer in answers.items() if answer is not None}
            if len(given) == len(answers) and not any(answer.saving for answer in given.values()):
                return [_describe(rank, answer) for rank, answer in sorted(given.items())]
            allowed = self._answer_seconds * (10 if any(answer.saving for answer in given.values()) else 1)
            if not live or time.monotonic() - began > allowed:
                return []
            time.sleep(_POLL_SECONDS)

    def _cancelled(self, trace: Trace, say: Callable[[str], None]) -> bool:
        """Whether the job's scheduler has ended it within the time of grace."""
        if not self._scheduler:
            return False
        try:
            say(cancel(trace))
        except (SchedulerError, ImportError) as error:
            say(str(error))
            return False
        deadline = time.monotonic() + self._grace
        while trace.live() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return not trace.live()

    def _fail(self, run_dir: Path, text: str) -> None:
        log.error("%s: %s", run_dir, text)
        if self._shout is not None:
            try:
                self._shout(run_dir, text)
            except OSError as error:
                log.error("%s: that cannot be told: %s", run_dir, error)


class DryRun:
    """Says what :class:`EscalatingStop` would do, and does nothing.

    Args:
        at_least: severity from which it would stop.
    """

    name = "stop (dry run)"

    def __init__(self, at_least: Severity = Severity.ERROR) -> None:
        self.at_least = at_least

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Look for what would be asked, and for the processes that would be signalled."""
        trace = Trace(run_dir)
        text = _nothing_to_stop(trace, finding) or "; ".join(describe_stop(trace))
        log.warning("%s: dry run: %s", run_dir, text)
        return text


def describe_stop(trace: Trace) -> list[str]:
    """What a stop of this run would do, one phrase each."""
    left_alone: list[str] = []
    processes, _ = find_processes(trace, left_alone.append)
    signals = [f"then end process {process.pid} of rank {rank}" for rank, process in processes.items()]
    scheduled = [f"run by {name} as {job}" for name, job in sorted(scheduled_as(trace).items())]
    return [f"would ask {len(trace.ranks)} rank(s) to stop", *signals, *left_alone, *scheduled]


def _nothing_to_stop(trace: Trace, finding: Finding) -> str:
    if trace.info.host == UNKNOWN_HOST:
        # The process that writes this run is the one that imports it.
        return "cannot be stopped from here: smdebug, which records the job, hears of no stop request"
    if not trace.live():
        return "nothing to stop: the job had ended"
    if is_of_an_earlier_attempt(trace, finding):
        return "nothing to stop: the job was started again since"
    return ""


def _ask(trace: Trace, reason: str) -> bool:
    """Request the stop, unless this attempt of the job has been asked already; whether it was requested now."""
    request = read_request(trace.path)
    if request is not None and request.time_ns >= min(_began(trace, rank) for rank in trace.ranks):
        return False
    request_stop(trace.path, reason, by="watch")
    return True


def _answer(trace: Trace, rank: int) -> Acknowledgement | None:
    """What this attempt of the rank answered, to whichever request."""
    answer = read_acknowledgement(trace.path, rank)
    return answer if answer is not None and answer.time_ns >= _began(trace, rank) else None


def _began(trace: Trace, rank: int) -> int:
    entries = trace.attempts(rank).entries
    return int(entries[-1].get("started_ns", 0)) if entries else 0


def _describe(rank: int, answer: Acknowledgement) -> str:
    saved = f"checkpoint {answer.checkpoint}" if answer.checkpoint else "no checkpoint"
    return f"rank {rank} stopped after {answer.step} steps, {saved}"


def _pauses() -> Iterator[float]:
    return itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1]))
