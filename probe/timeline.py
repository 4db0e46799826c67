"""How long the phases of a step took on the host."""

from __future__ import annotations

from time import perf_counter_ns


class StepClock:
    """Accumulates the phases of the step that is open. All times are host time in nanoseconds.

    A step lasts from the end of the one before it to the end of its optimizer step. ``data`` is the part
    before its first forward pass: loading, moving and whatever else the script does between steps.
    ``backward`` is the time inside ``backward()``. On an accelerator these are the times of the calls, which
    may return before the device is done.
    """

    __slots__ = ("_began", "_latest", "_marks", "phases")

    def __init__(self) -> None:
        self._began = self._latest = perf_counter_ns()
        self._marks: dict[str, int] = {}
        self.phases: dict[str, int] = {}

    def restart(self) -> None:
        """A new step begins now."""
        self._began = self._latest = perf_counter_ns()
        self._marks.clear()
        self.phases.clear()

    def begin(self, phase: str) -> None:
        """The phase begins now."""
        now = perf_counter_ns()
        if phase == "forward_ns" and "data_ns" not in self.phases:
            self.phases["data_ns"] = now - self._began
        self._marks[phase] = now

    def end(self, phase: str) -> None:
        """The phase ends now; without a beginning nothing is recorded."""
        began = self._marks.pop(phase, None)
        if began is not None:
            self._latest = perf_counter_ns()
            self.phases[phase] = self.phases.get(phase, 0) + self._latest - began

    def add_hook(self, since_ns: int) -> None:
        """The hook itself was at work since then (``perf_counter_ns``)."""
        self.phases["hook_ns"] = self.phases.get("hook_ns", 0) + perf_counter_ns() - since_ns

    def finish(self) -> dict[str, int]:
        """The step is over: its phases and its duration, up to the end of its latest phase."""
        return {**self.phases, "duration_ns": self._latest - self._began}
