"""torch.profiler for some steps of a running job: because it was asked for, or planned."""

from __future__ import annotations

import gzip
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stepwatch.probe.store.profile_requests import (
    MOST_STEPS,
    ProfileAnswer,
    ProfileRequest,
    ProfileRequests,
    agree_profile,
    answer_profile,
    forget_profile_answer,
)
from stepwatch.probe.store.profiles import MOST_PROFILES, Profile, profiles_of

log = logging.getLogger("stepwatch")

_LARGEST_TRACE = 2 << 30
_WRITING_SECONDS = 120.0


class _Running:
    """A profile under way, of the steps from ``first`` on; ``step`` is the one that is open."""

    def __init__(self, request: ProfileRequest, profiler: Any, first: int, thread: int) -> None:
        self.request = request
        self.profiler = profiler
        self.first = self.step = first
        self.thread = thread
        self.paused_seconds = 0.0
        self.restore: Callable[[], None] = lambda: None
        self._mark: Any = None

    def turn_to(self, step: int) -> None:
        """Mark where a step begins, under the name that torch.profiler gives to steps."""
        self._end_mark()
        self.step = step
        self._mark = torch.profiler.record_function(f"ProfilerStep#{step}")
        self._mark.__enter__()

    def stop(self) -> None:
        """Stop the profiler."""
        self.restore()
        self._end_mark()
        self.profiler.stop()

    def _end_mark(self) -> None:
        mark, self._mark = self._mark, None
        if mark is not None:
            mark.__exit__(None, None, None)


class StepProfiler:
    """Profiles steps of this rank from one step boundary to another.

    The training never fails of it, and a profiler that the script itself uses comes first: while one runs, a request
    is refused, and when the script starts one, ours ends early.

    Args:
        run_dir: the run's directory.
        rank, world_size: of this process.
        planned: what is profiled unasked, in order; see :func:`plan_steps`.
        recorded: whether this rank writes into the run.
        hearing_seconds: after which the other ranks have read what rank 0 has written.
        note: told what could not be done.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        world_size: int,
        planned: Iterable[ProfileRequest],
        *,
        recorded: bool,
        hearing_seconds: float,
        note: Callable[[str], object],
    ) -> None:
        self._run_dir = run_dir
        self._rank = rank
        self._recorded = recorded
        self._decides = world_size > 1 and rank == 0
        self._hearing_seconds = hearing_seconds
        self._note = note
        self._requests = ProfileRequests(run_dir, agreed=world_size > 1 and rank != 0)
        self._planned = list(planned) if recorded else []
        self._asked: ProfileRequest | None = None
        self._running: _Running | None = None
        self._writer: threading.Thread | None = None
        self._answering = threading.Lock()
        if recorded:
            forget_profile_answer(run_dir, rank)

    @property
    def wanted(self) -> bool:
        """Whether a step boundary has something to do here: asked at every one of them."""
        return self._running is not None or self._asked is not None or bool(self._planned)

    @property
    def running(self) -> bool:
        """Whether the step that is open is profiled."""
        return self._running is not None

    def poll(self, step: int, step_seconds: float) -> None:
        """Look for a request; called from a thread beside the training.

        Args:
            step: steps done.
            step_seconds: how long a step takes, or 0 where that is not known.
        """
        request = self._requests.poll()
        if request is None:
            return
        if self._decides:
            ahead = math.ceil(self._hearing_seconds / step_seconds) if step_seconds else 1
            request = replace(request, from_step=step + ahead + 1)
            agree_profile(self._run_dir, request)
        if self._rank in request.ranks and self._recorded:
            self._asked = request

    def at_boundary(self, step: int) -> bool:
        """A step has ended and this one begins; called by the training thread, again if several optimizers step.

        Returns:
            Whether it took time that belongs to no step.
        """
        try:
            running = self._running
            if running is None:
                request = self._due(step)
                return request is not None and self._start(request, step)
            if step == running.step:
                return False
            if step < running.first + running.request.steps:
                running.turn_to(step)
                return False
            self._finish(step)
        except Exception as error:
            self._give_up(error)
        return True

    def close(self, step: int) -> None:
        """The job ends: keep the whole steps that there are, and wait until they are written.

        Args:
            step: steps done.
        """
        running = self._running
        if running is not None and running.thread == threading.get_ident():
            try:
                self._finish(step, "the job ended")
            except Exception as error:
                self._give_up(error)
        if self._writer is not None:
            self._writer.join(_WRITING_SECONDS)

    def _due(self, step: int) -> ProfileRequest | None:
        asked = self._asked
        if asked is not None and step >= (asked.from_step or 0):
            self._asked = None
            return asked
        while self._planned:
            first = self._planned[0].from_step or 0
            if step < first:
                return None
            plan = self._planned.pop(0)
            left = first + plan.steps - step
            if left > 0:
                return replace(plan, steps=left)
        return None

    def _start(self, request: ProfileRequest, step: int) -> bool:
        """Start for a request; returns whether that took time."""
        began = time.perf_counter()
        refusal = self._refusal()
        if refusal:
            self._answer(request, "refused", refusal)
            return True
        profiler = torch.profiler.profile(record_shapes=True, profile_memory=True)
        running = self._running = _Running(request, profiler, step, threading.get_ident())
        profiler.start()
        running.restore = _make_way_for_others(self._yield)
        self._answer(request, "running", f"from step {step} on", step)
        running.turn_to(step)
        running.paused_seconds = time.perf_counter() - began
        return True

    def _refusal(self) -> str:
        if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            return "a profiler of the script's own is at work; it was left alone"
        if sum(profile.rank == self._rank for profile in profiles_of(self._run_dir)) >= MOST_PROFILES:
            return f"the run has {MOST_PROFILES} profiles of this rank already; remove some below its folder profiles"
        return ""

    def _yield(self) -> bool:
        """Another profiler is about to start; returns whether ours had to end for it."""
        running = self._running
        if running is None or running.thread != threading.get_ident():
            return False
        try:
            self._finish(running.step, "a profiler of the script's own was started")
        except Exception as error:
            self._give_up(error)
        return True

    def _finish(self, step: int, cut_short: str = "") -> None:
        """Stop, and have what was recorded written beside the training.

        Args:
            step: the first step that was not profiled as a whole.
            cut_short: why before all of the steps were.
        """
        running, self._running = self._running, None
        assert running is not None
        began = time.perf_counter()
        running.stop()
        running.paused_seconds += time.perf_counter() - began
        steps = step - running.first
        if steps:
            arguments = (running, steps, cut_short, self._writer)
            self._writer = threading.Thread(target=self._write, args=arguments, name="stepwatch-profile", daemon=True)
            self._writer.start()
        else:
            self._answer(running.request, "refused", f"{cut_short} before a whole step was profiled")

    def _write(self, running: _Running, steps: int, cut_short: str, before: threading.Thread | None) -> None:
        request = running.request
        try:
            if before is not None:
                before.join()
            profile = Profile(
                self._run_dir,
                self._rank,
                running.first,
                steps,
                request.by,
                request.reason,
                running.paused_seconds,
            )
            profile.prepare()
            _export(running.profiler, profile.trace)
            profile.publish()
            of = f"{steps} of {request.steps} steps, {cut_short}: " if cut_short else ""
            self._answer(request, "done", f"{of}{profile.trace}", running.first)
        except Exception as error:
            self._answer(request, "refused", f"it could not be kept: {error or type(error).__name__}")

    def _give_up(self, error: Exception) -> None:
        """The profiler failed: the training goes on without it."""
        running, self._running = self._running, None
        if running is not None:
            with suppress(Exception):
                running.stop()
            self._answer(running.request, "refused", f"torch.profiler failed: {type(error).__name__}: {error}")

    def _answer(self, request: ProfileRequest, state: str, detail: str, step: int | None = None) -> None:
        if state == "refused":
            self._note(f"steps were not profiled: {detail}")
            log.warning("steps were not profiled: %s", detail)
        try:
            with self._answering:
                answer_profile(self._run_dir, self._rank, ProfileAnswer(request.id, state, detail, step))
        except OSError as error:
            log.warning("%s: what became of the profile cannot be said: %s", self._run_dir, error)


def _make_way_for_others(yield_: Callable[[], bool]) -> Callable[[], None]:
    """Hear of a profiler that is about to start in this process, which would fail beside ours.

    Returns what ends that.
    """
    module: Any = torch.autograd.profiler
    prepare, enable = module._prepare_profiler, module._enable_profiler

    def prepare_after(*args: Any, **options: Any) -> Any:
        yield_()
        return prepare(*args, **options)

    def enable_after(*args: Any, **options: Any) -> Any:
        if yield_():
            prepare(*args)  # it had been prepared before ours, whose end undid that
        return enable(*args, **options)

    module._prepare_profiler, module._enable_profiler = prepare_after, enable_after

    def restore() -> None:
        module._prepare_profiler, module._enable_profiler = prepare, enable

    return restore


def _export(profiler: Any, path: Path) -> None:
    """Write the trace, compressed; under its name when it is whole.

    Raises:
        ValueError: it is larger than a run keeps.
        OSError: it cannot be written.
    """
    text, packed = path.with_name(f".{path.stem}"), path.with_name(f".{path.name}")
    try:
        profiler.export_chrome_trace(str(text))
        size = text.stat().st_size
        if size > _LARGEST_TRACE:
            raise ValueError(f"the trace has {size >> 20} MB, more than {_LARGEST_TRACE >> 20}: ask for fewer steps")
        with text.open("rb") as plain, gzip.open(packed, "wb", compresslevel=3) as small:
            shutil.copyfileobj(plain, small, 1 << 20)
        packed.replace(path)
    finally:
        for left in (text, packed):
            left.unlink(missing_ok=True)


def plan_steps(steps: Iterable[int], rank: int) -> list[ProfileRequest]:
    """Planned steps as requests, one for each stretch of steps in a row.

    Raises:
        ValueError: they are not whole numbers from 0 on, or too many.
    """
    chosen = set(steps)
    if not all(isinstance(step, int) and step >= 0 for step in chosen) or len(chosen) > MOST_STEPS:
        raise ValueError(f"profile_steps is {steps!r}; expected at most {MOST_STEPS} steps, such as range(100, 103)")
    found: list[ProfileRequest] = []
    for step in sorted(chosen):
        if found and step == (found[-1].from_step or 0) + found[-1].steps:
            found[-1] = replace(found[-1], steps=found[-1].steps + 1)
        else:
            found.append(ProfileRequest("planned", 1, (rank,), "planned in the script", "script", 0, step))
    return found
