"""How long the phases of a step took on the host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ContextDecorator
from time import perf_counter_ns

from stepwatch.probe.device_clock import DeviceClock
from stepwatch.probe.recorder import OpenRecord


class StepClock:
    """Accumulates the phases of the step that is open. All times are host time in nanoseconds.

    A step lasts from the end of the one before it to the end of its optimizer step. ``data`` is the part
    before its first forward pass: loading, moving and whatever else the script does between steps; ``loader``
    is what of it was waited for a DataLoader, ``copy`` what was spent in copying to a device, ``checkpoint`` what
    ``torch.save`` took. ``backward`` is the time inside ``backward()``. ``collective``, what was waited for other
    ranks, is part of the phases in which it was. On an accelerator these are the times of the calls, which may return
    before the device is done; ``device`` has the device's own.

    Attributes:
        batch: which batch came last, see :meth:`loaded`.
        device: times the phases on a CUDA device.
        hook_ns: what the hook itself took.
        phases: nanoseconds by column of the ``steps`` table.
        untimed: the step that is open takes longer than usual because of us, as one that is profiled; no times of it
            are told.
        waits_for: the phase outside the step that the script is in, or "".
    """

    __slots__ = (
        "_began",
        "_between",
        "_latest",
        "_marks",
        "batch",
        "device",
        "hook_ns",
        "phases",
        "untimed",
        "waits_for",
    )

    def __init__(self) -> None:
        self._began = self._latest = perf_counter_ns()
        self._marks: dict[str, int] = {}
        self._between: dict[str, int] = {}
        self.phases: dict[str, int] = {}
        self.hook_ns = 0
        self.untimed = False
        self.waits_for = ""
        self.batch = (0, 0)
        self.device = DeviceClock()

    @property
    def activity(self) -> tuple[int, str]:
        """When a phase ended last, and the one that the script is in; another thread may ask.

        Outside the phases it is ``loader`` or ``checkpoint`` while the script waits for these, else ``script``;
        ``collective`` anywhere.
        """
        phase = self.waits_for or next(reversed(list(self._marks)), "script")
        return self._latest, phase.removesuffix("_ns")

    @property
    def outside(self) -> bool:
        """Whether the script is in no phase of the step."""
        return not self._marks

    def leave_out(self) -> None:
        """What passed since the last phase ended belongs to no step, and to no phase that is open."""
        self._began = self._latest = perf_counter_ns()
        self._marks = dict.fromkeys(self._marks, self._latest)

    def restart(self) -> None:
        """A new step begins where the last phase ended."""
        self._began = self._latest
        self._marks.clear()
        self.phases.clear()
        self.hook_ns = 0

    def begin(self, phase: str) -> None:
        """The phase begins now."""
        now = perf_counter_ns()
        if phase == "forward_ns" and "data_ns" not in self.phases:
            self.phases["data_ns"] = now - self._began
        if self._between:
            self._take_between()
        self._marks[phase] = now
        if self.device.copying:
            self.device.begin(phase)

    def end(self, phase: str) -> None:
        """The phase ends now; without a beginning nothing is recorded."""
        began = self._marks.pop(phase, None)
        if began is not None:
            if self.device.active:
                self.device.end(phase)
            self._latest = perf_counter_ns()
            self.phases[phase] = self.phases.get(phase, 0) + self._latest - began
            if self._between:
                self._take_between()

    def waited(self, phase: str, nanoseconds: int) -> None:
        """The script waited. Between two steps it is the later one that it belongs to."""
        self._between[phase] = self._between.get(phase, 0) + nanoseconds

    def waiting(self, phase: str) -> int:
        """Nanoseconds waited since the latest phase began or ended."""
        return self._between.get(phase, 0)

    def loaded(self, *, samples: int, entries: int, workers: int, batch: tuple[int, int]) -> None:
        """A batch came from a loader with that many workers.

        Args:
            samples: its samples.
            entries: those of its first tensor.
            workers: processes that load.
            batch: its number among all that this loader gave, from 1 on, and how many an epoch has, 0 where that is
                not known.
        """
        self.batch = batch
        self._between["samples"] = self._between.get("samples", 0) + samples
        self._between["batch_entries"] = self._between.get("batch_entries", 0) + entries
        self._between["loader_workers"] = workers

    def finish(self) -> dict[str, int]:
        """The step is over: its phases and its duration, up to the end of its latest phase."""
        if self.untimed:
            return {}
        return {**self.phases, "hook_ns": self.hook_ns, "duration_ns": self._latest - self._began}

    def _take_between(self) -> None:
        workers = self._between.pop("loader_workers", None)
        for phase, amount in self._between.items():
            self.phases[phase] = self.phases.get(phase, 0) + amount
        if workers is not None:
            self.phases["loader_workers"] = workers
        self._between.clear()


class Region(ContextDecorator):
    """A part of the script that is timed whenever it runs: a context manager and a decorator.

    Args:
        name: what it is called.
        add: takes the name and the nanoseconds of each run.
    """

    def __init__(self, name: str, add: Callable[[str, int], object]) -> None:
        self._name = name
        self._add = add
        self._began: list[int] = []

    def __enter__(self) -> Region:
        self._began.append(perf_counter_ns())
        return self

    def __exit__(self, *error: object) -> None:
        self._add(self._name, perf_counter_ns() - self._began.pop())


class RegionTimes:
    """Sums the runs of regions over a step, as scalars ``seconds/NAME``."""

    def __init__(self) -> None:
        self._record: OpenRecord | None = None
        self._totals: dict[str, float] = {}

    def add(self, record: OpenRecord, name: str, nanoseconds: int) -> None:
        """A region has run in this step."""
        if record is not self._record:
            self._record, self._totals = record, {}
        total = self._totals[name] = self._totals.get(name, 0.0) + nanoseconds / 1e9
        record.add_scalar(f"seconds/{name}", total)
