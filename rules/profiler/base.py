"""What rules about a job's cost see: the steps of all ranks and the samples of all nodes, in the order of time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step


class Layout:
    """Which readings a sample has, interned: most samples of a run have one of a few layouts.

    Attributes:
        metrics: the metrics that are there.
    """

    __slots__ = ("_by_metric", "_places", "metrics")

    def __init__(self, keys: Sequence[tuple[str, str]]) -> None:
        self._places = {key: place for place, key in enumerate(keys)}
        by_metric: dict[str, list[tuple[str, int]]] = {}
        for (device, metric), place in self._places.items():
            by_metric.setdefault(metric, []).append((device, place))
        self._by_metric = by_metric
        self.metrics = frozenset(by_metric)

    def place(self, device: str, metric: str) -> int | None:
        """Where the reading stands among the values; None where it is not there."""
        return self._places.get((device, metric))

    def devices(self, metric: str) -> Sequence[tuple[str, int]]:
        """(device, place) of every device that has this metric."""
        return self._by_metric.get(metric, ())


@dataclass(frozen=True, slots=True)
class Sample:
    """What was read of one node at one time.

    Attributes:
        node: name of the node.
        time_ns: nanoseconds since the epoch.
        layout: which readings there are; what is read seldom only at the samples at which it was.
        numbers: their values.
    """

    node: str
    time_ns: int
    layout: Layout
    numbers: Sequence[float]

    @property
    def seconds(self) -> float:
        """Time in seconds."""
        return self.time_ns / 1e9

    def get(self, device: str, metric: str) -> float | None:
        """A reading, or None where it is not there."""
        place = self.layout.place(device, metric)
        return None if place is None else self.numbers[place]

    def of(self, metric: str) -> list[tuple[str, float]]:
        """(device, value) of every device that has this metric."""
        numbers = self.numbers
        return [(device, numbers[place]) for device, place in self.layout.devices(metric)]


class Layouts:
    """Makes samples, interning their layouts."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, str], ...], Layout] = {}

    def sample(self, node: str, time_ns: int, readings: Iterable[tuple[str, str, float]]) -> Sample:
        """The sample of these (device, metric, value)."""
        devices, metrics, numbers = zip(*readings, strict=True)
        return Sample(node, time_ns, self.of(tuple(zip(devices, metrics, strict=True))), numbers)

    def of(self, keys: tuple[tuple[str, str], ...]) -> Layout:
        """The layout of these (device, metric)."""
        layout = self._known.get(keys)
        if layout is None:
            layout = self._known[keys] = Layout(keys)
        return layout


_MOMENTS = 30


def end_ns(step: Step) -> int:
    """When a step ended, in nanoseconds since the epoch: its record begins with its forward pass."""
    return step.time_ns + max(step.timing.get("duration_ns", 0) - step.timing.get("data_ns", 0), 0)


class ProfilerRule(Rule):
    """Judges a whole run, not one rank: gets the steps of all ranks, timing only, and the samples of all nodes.

    They come in the order of time. Findings tell the step at which a time was by the steps of the lowest rank.

    Attributes:
        metrics: metrics of which one must be in a sample for it to be shown; None: all are.
        moments: where only so many samples are looked at: which ones. Others need not be shown, but for those with
            one of the metrics in ``seldom``.
        steps: training steps seen.
        sampled: whether there were samples.
        step: number of the latest training step of the lowest rank, 0 before the first.
    """

    severity = Severity.WARNING
    metrics: ClassVar[frozenset[str] | None] = frozenset()
    seldom: ClassVar[frozenset[str]] = frozenset()
    moments: Thinned | None = None

    def __init__(self) -> None:
        self.steps = 0
        self.sampled = False
        self.step = 0
        self._first_step: int | None = None
        self._lowest: int | None = None

    def observe(self, step: Step) -> Iterable[Finding]:
        """Take note of a step and judge it."""
        if self._lowest is None or step.rank < self._lowest:
            self._lowest = step.rank
        if step.training:
            self.steps += 1
            if step.rank == self._lowest:
                self.step = step.step
                self._first_step = step.step if self._first_step is None else self._first_step
        return self.judge_step(step) or ()

    def takes(self, layout: Layout) -> bool:
        """Whether samples with these readings have something for this rule; asked once for each layout."""
        self.sampled = True
        return self.metrics is None or not self.metrics.isdisjoint(layout.metrics)

    def sample(self, sample: Sample) -> Iterable[Finding]:
        """Judge a sample that it takes."""
        return self.judge_sample(sample) or ()

    def due(self, sample: Sample) -> bool:
        """Whether it looks at this sample."""
        return self.moments is None or self.moments.due(sample)

    def pausing(self, layout: Layout) -> Thinned | None:
        """What says which samples with these readings are looked at; None: all."""
        return self.moments if self.seldom.isdisjoint(layout.metrics) else None

    def judge_step(self, step: Step) -> Iterable[Finding] | None:
        """Judge a step."""
        return None

    def judge_sample(self, sample: Sample) -> Iterable[Finding] | None:
        """Judge a sample."""
        return None

    @abstractmethod
    def missing(self) -> str:
        """What it would have needed to decide; "" where it had everything."""

    def margin(self) -> float | None:
        """Nearest approach to firing, measured over threshold."""
        return None

    def coverage(self) -> Coverage:
        """See the base class."""
        missing = self.missing()
        return Coverage(
            decided=not missing,
            steps=self.steps,
            first_step=self._first_step,
            last_step=self.step if self._first_step is not None else None,
            missing=(missing,) if missing else (),
            margin=self.margin(),
        )

    def found(
        self,
        *,
        value: float,
        threshold: float,
        message: str,
        suggestion: str,
        first_step: int | None = None,
        rank: int | None = None,
        devices: Iterable[str] = (),
        evidence: dict[str, Any] | None = None,
        severity: Severity | None = None,
    ) -> Finding:
        """A finding at the current step; ``devices`` are what it is about."""
        return Finding(
            rule=self.name,
            severity=severity or self.severity,
            first_step=self.step if first_step is None else first_step,
            last_step=self.step,
            tensors=tuple(devices),
            value=float(value),
            threshold=float(threshold),
            message=message,
            suggestion=suggestion,
            evidence=evidence or {},
            rank=(self._lowest or 0) if rank is None else rank,
        )


class Thinned:
    """Lets through so many moments of a window of time, at most."""

    def __init__(self, seconds: float) -> None:
        self._pause = seconds / _MOMENTS
        self._next: dict[str, float] = {}

    def pauses(self, node: str, seconds: float) -> bool:
        """Whether no sample of this node is one of them at this time."""
        return seconds < self._next.get(node, 0.0)

    def due(self, sample: Sample) -> bool:
        """Whether this sample of its node is one of them."""
        now = sample.seconds
        if now < self._next.get(sample.node, 0.0):
            return False
        self._next[sample.node] = now + self._pause
        return True


def positive(name: str, value: float) -> float:
    """``value``, checked.

    Raises:
        ValueError: it is not above 0.
    """
    if not value > 0:
        raise ValueError(f"{name} is {value}; expected more than 0")
    return value


def spell_seconds(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def spell_bytes(count: float) -> str:
    """An amount of memory as a person says it."""
    for size, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if abs(count) >= 1 << size:
            return f"{count / (1 << size):.3g} {unit}"
    return f"{count:.0f} bytes"
