"""The phases of steps, as SageMaker's configuration has them profiled: in a timeline, and in profiles of Python."""

from __future__ import annotations

import atexit
import time
from dataclasses import dataclass

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.profiler_config import ProfilerConfigParser
from stepwatch.probe.smdebug.timeline import TimelineFileWriter


@dataclass
class _Open:
    """The step under way; ``seconds`` since the epoch are when it began."""

    mode: ModeKeys
    mode_step: int
    step: int
    seconds: float
    forward: float | None = None


class StepPhases:
    """Writes ``Step:MODE`` and ``Forward`` of each step into a timeline, and profiles Python where it is wanted.

    Args:
        parser: the configuration; it is read again at every step, since SageMaker changes it while a job runs.
        writer: the timeline.
    """

    def __init__(self, parser: ProfilerConfigParser, writer: TimelineFileWriter) -> None:
        self._parser, self._writer = parser, writer
        self._open: _Open | None = None
        parser.start_pre_step_zero_python_profiling()

    def step_begins(self, mode: ModeKeys, mode_step: int, step: int) -> None:
        """A step begins, and the one before it has ended."""
        now = time.time()
        self._end_step(now)
        self._parser.load_config()
        self._open = _Open(mode, mode_step, step, now)
        self._parser.handle_step_start_python_profiling(mode, step)

    def forward_ended(self) -> None:
        """Its forward pass has ended."""
        if self._open is not None and self._open.forward is None:
            self._open.forward = time.time() - self._open.seconds
            self._parser.handle_forward_pass_end_python_profiling(self._open.mode, self._open.step)

    def close(self) -> None:
        """The last step has ended; what Python does until the process ends is profiled, if anything is."""
        self._end_step(time.time())
        self._parser.start_post_hook_close_python_profiling()
        atexit.register(self._parser.stop_post_hook_close_python_profiling)

    def _end_step(self, now: float) -> None:
        if self._open is None:
            return
        step, self._open = self._open, None
        self._parser.handle_step_end_python_profiling(step.mode, step.step)
        durations = {f"Step:{step.mode}": now - step.seconds, "Forward": step.forward}
        for phase, seconds in durations.items():
            if seconds is not None:
                number = str(step.mode_step)
                self._writer.write_trace_events(step.seconds, phase, phase, duration=seconds, step_num=number)
