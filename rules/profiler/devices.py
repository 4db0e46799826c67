"""Rules about processors and GPUs that are held back, broken or idle."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.profiler.base import Layout, ProfilerRule, Sample, Thinned, end_ns, positive
from stepwatch.rules.profiler.gpus import JobGpus
from stepwatch.rules.profiler.memory import Window
from stepwatch.rules.profiler.phases import WAITS, phases_of
from stepwatch.rules.step import Step

_HARDWARE_XIDS = {
    48: "a double-bit ECC error",
    63: "a row of memory was remapped",
    64: "a row of memory could not be remapped",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    92: "many single-bit ECC errors",
    94: "a contained ECC error",
    95: "an uncontained ECC error",
    119: "the GPU's system processor does not answer",
}
_SOFTWARE_XIDS = {
    13: "an illegal access in a kernel",
    31: "an illegal address",
    43: "a kernel was aborted",
    45: "aborted",
}


class DeviceErrors(ProfilerRule):
    """A GPU reports errors: XID events, uncorrected ECC errors, memory rows that wait to be remapped."""

    severity = Severity.ERROR
    metrics = frozenset({"xid", "ecc_uncorrected", "remapped_rows_pending"})

    def __init__(self) -> None:
        super().__init__()
        self._latest: dict[tuple[str, Layout], list[float]] = {}
        self._base: dict[tuple[str, str], float] = {}
        self._said: set[tuple[str, str]] = set()
        self._gpus = False

    def takes(self, layout: Layout) -> bool:
        """See the base class."""
        self._gpus = self._gpus or "utilization_percent" in layout.metrics
        return super().takes(layout)

    def judge_sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        counts = [value for metric in sorted(self.metrics) for _, value in sample.of(metric)]
        if self._latest.get((sample.node, sample.layout)) == counts:
            return
        self._latest[sample.node, sample.layout] = counts
        for uuid, code in sample.of("xid"):
            if (uuid, f"xid {code:.0f}") in self._said:
                continue
            self._said.add((uuid, f"xid {code:.0f}"))
            hardware = int(code) not in _SOFTWARE_XIDS
            meaning = {**_HARDWARE_XIDS, **_SOFTWARE_XIDS}.get(int(code), "see NVIDIA's list of XID errors")
            yield self.found(
                devices=[uuid],
                value=code,
                threshold=0,
                message=f"the driver reported XID {code:.0f} of {uuid}: {meaning}",
                suggestion="drain the node, reset the GPU and have it checked"
                if hardware
                else "run once with CUDA_LAUNCH_BLOCKING=1 to find the kernel",
                severity=Severity.ERROR if hardware else Severity.WARNING,
            )
        for metric, told in (
            ("ecc_uncorrected", "uncorrected ECC errors since it was last reset"),
            ("remapped_rows_pending", "memory rows that wait to be remapped"),
        ):
            for uuid, count in sample.of(metric):
                before = self._base.setdefault((uuid, metric), 0.0 if metric == "remapped_rows_pending" else count)
                if count > before and (uuid, metric) not in self._said:
                    self._said.add((uuid, metric))
                    yield self.found(
                        devices=[uuid],
                        value=count,
                        threshold=before,
                        message=f"{uuid} has {count:.0f} {told}, {before:.0f} before",
                        suggestion="save a checkpoint, reset the GPU, and replace it if errors come back",
                        severity=Severity.ERROR if metric == "ecc_uncorrected" else Severity.WARNING,
                    )

    def missing(self) -> str:
        """See the base class."""
        return "" if self._gpus else "no GPU was sampled"


class _Held(ProfilerRule):
    """The mean of a metric over some seconds reaches a limit."""

    metric: str
    absent: str
    limit: float

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = positive("seconds", seconds)
        self.moments = Thinned(seconds)
        self._windows: dict[tuple[str, str], Window] = {}
        self._said: set[tuple[str, str]] = set()
        self._nearest = 0.0

    def judge_sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        if not self.due(sample):
            return
        for device, value in sample.of(self.metric):
            key = (sample.node, device)
            window = self._windows.get(key)
            if window is None:
                window = self._windows[key] = Window(self.seconds)
            mean = window.add(sample.seconds, value)
            if mean is None:
                continue
            self._nearest = max(self._nearest, mean / self.limit)
            if mean >= self.limit and key not in self._said:
                self._said.add(key)
                yield self.tell(device, mean)

    def tell(self, device: str, mean: float) -> Finding:
        """The finding about a device."""
        raise NotImplementedError

    def missing(self) -> str:
        """See the base class."""
        return "" if self._windows else self.absent

    def margin(self) -> float | None:
        """See the base class."""
        return self._nearest if self._windows else None


class GpuOverheating(_Held):
    """A GPU lowers its clock because it is too hot.

    Args:
        share: share of the time that is too much, above 0.
        seconds: how long it must last.
    """

    metric = "throttled_thermal"
    absent = "no GPU was sampled"
    metrics = frozenset({metric})

    calibrated = (("share", "higher"),)

    def __init__(self, *, share: float = 0.2, seconds: float = 60.0) -> None:
        super().__init__(seconds)
        self.limit = self.share = positive("share", share)

    def tell(self, device: str, mean: float) -> Finding:
        """See the base class."""
        return self.found(
            devices=[device],
            value=mean,
            threshold=self.share,
            message=f"{device} has lowered its clock for heat {100 * mean:.0f} % of the last {self.seconds:g} s",
            suggestion="check the cooling of the node (fans, dust, inlet temperature) and how hot its neighbours are",
        )


class ContainerThrottled(_Held):
    """The job's container may use fewer processors than the job wants: the kernel makes it pause.

    Args:
        percent: share of the scheduler's periods with a pause that is too much.
        seconds: how long it must last.
    """

    metric = "throttled_percent"
    absent = "no limit of a container was sampled"
    metrics = frozenset({metric})

    calibrated = (("percent", "higher"),)

    def __init__(self, *, percent: float = 25.0, seconds: float = 60.0) -> None:
        super().__init__(seconds)
        self.limit = self.percent = positive("percent", percent)
        self._cores: float | None = None

    def judge_sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        self._cores = sample.get("cgroup", "cpu_limit_cores") or self._cores
        yield from super().judge_sample(sample)

    def tell(self, device: str, mean: float) -> Finding:
        """See the base class."""
        cores = f"its limit of {self._cores:g} cores" if self._cores else "its limit of cores"
        return self.found(
            devices=[device],
            value=mean,
            threshold=self.percent,
            message=f"the container was held back in {mean:.0f} % of the scheduler's periods for reaching {cores}",
            suggestion="raise the container's CPU limit, or use fewer threads and workers: torch.set_num_threads() and "
            "num_workers beyond the limit only add pauses",
        )


class GpuStarved(ProfilerRule):
    """A GPU that the job uses is mostly idle while training goes on; says which phase of the step it waits in.

    GPUs that are not the job's do not count.

    Args:
        percent: utilisation below which it starves.
        seconds: how long it must last.
        steps: training steps that must have ended meanwhile.
    """

    metrics = frozenset({"utilization_percent"})
    seldom = frozenset({"own_memory_bytes"})

    calibrated = (("percent", "lower"),)

    def __init__(self, *, percent: float = 30.0, seconds: float = 120.0, steps: int = 10) -> None:
        super().__init__()
        self.percent = positive("percent", percent)
        self.seconds = positive("seconds", seconds)
        self.least = positive("steps", steps)
        self.moments = Thinned(seconds)
        self._windows: dict[str, Window] = {}
        self._gpus = JobGpus()
        self._steps: deque[tuple[float, Step]] = deque()
        self._said = False

    def judge_step(self, step: Step) -> None:
        """See the base class."""
        self._gpus.see_step(step)
        if step.training:
            now = end_ns(step) / 1e9
            self._steps.append((now, step))
            while self._steps[0][0] < now - self.seconds:
                self._steps.popleft()

    def judge_sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        self._gpus.see_sample(sample)
        if not self.due(sample):
            return
        starving = {}
        for uuid, value in sample.of("utilization_percent"):
            window = self._windows.get(uuid)
            if window is None:
                window = self._windows[uuid] = Window(self.seconds)
            mean = window.add(sample.seconds, value)
            if mean is not None and mean < self.percent and uuid in self._gpus:
                starving[uuid] = mean
        if self._said or not starving:
            return
        recent = [step for time, step in self._steps if time >= sample.seconds - self.seconds]
        if len(recent) < self.least:
            return
        self._said = True
        phase, share = _largest_phase(recent)
        mean = min(starving.values())
        yield self.found(
            first_step=recent[0].step,
            devices=list(starving),
            value=mean,
            threshold=self.percent,
            message=f"{len(starving)} GPU(s) were used {mean:.0f} % of the last {self.seconds:g} s of training; "
            f"{100 * share:.0f} % of the step is {phase}",
            suggestion=_STARVING[phase],
            evidence={"phase": phase, "share": share},
        )

    def missing(self) -> str:
        """See the base class."""
        if not self._windows:
            return "no GPU was sampled"
        return "" if self._gpus.ranks else "the job does not train on a GPU"


_STARVING = {
    "waiting for data": "more data loader workers, pin_memory=True, cheaper samples (see DataLoadingBound)",
    "copying batches to the device": "pin_memory=True in the DataLoader and non_blocking=True in to(); smaller types, "
    "as bytes that are made floats on the device",
    "other work before the forward pass": "take work off the step: no printing, no item() at every step",
    "the forward and backward pass": "larger batches, torch.compile or CUDA graphs: the host launches small kernels",
    "the optimizer's step": "fused=True or foreach=True in the optimizer",
    "writing checkpoints": "checkpoints less often, or asynchronously",
    "other work of the script": "metrics and logging less often, and no item() at every step: it waits for the device",
}


_STARVING_IN = dict(
    zip(("loader", "copy", "data", "forward", "optimizer", "checkpoint", "other"), _STARVING, strict=True)
)


def _largest_phase(steps: list[Step]) -> tuple[str, float]:
    """The phase that takes most of these steps, in words, and its share."""

    def total(name: str) -> float:
        return float(sum(step.timing.get(f"{name}_ns", 0) for step in steps))

    whole = total("duration") or 1.0
    measured = ("data", *WAITS, "forward", "backward", "optimizer")
    parts = phases_of({"duration": whole, **{name: total(name) for name in measured}})
    parts["forward"] += parts.pop("backward")
    phase = max(parts, key=parts.__getitem__)
    return _STARVING_IN[phase], parts[phase] / whole
