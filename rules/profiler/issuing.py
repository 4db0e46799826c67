"""Rules about the host, which gives the devices their work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import ProfilerRule, Sample, Thinned, end_ns, positive
from stepwatch.rules.profiler.gpus import JobGpus
from stepwatch.rules.profiler.memory import Window
from stepwatch.rules.step import Step

_ADVICE = {
    "forward": "torch.compile(mode='reduce-overhead') or CUDA graphs, which launch many kernels at once; larger "
    "batches; no item(), print or Python loop over samples in the model",
    "backward": "torch.compile(mode='reduce-overhead') or CUDA graphs, which launch many kernels at once; larger "
    "batches; fewer hooks on tensors and modules",
    "optimizer": "fused=True in the optimizer, which updates all parameters by a few kernels",
}

_ISSUING = tuple(f"{phase}_ns" for phase in _ADVICE)
_TIMES = (*_ISSUING, "collective_ns", "duration_ns")


class _Issued:
    """What one rank's host did in the last seconds of training, by phase."""

    def __init__(self, seconds: float) -> None:
        self._window_ns = int(seconds * 1e9)
        self._steps: deque[tuple[int, Step]] = deque()
        self._totals = dict.fromkeys(_TIMES, 0)

    def add(self, step: Step) -> None:
        now = end_ns(step)
        self._steps.append((now, step))
        for name in _TIMES:
            self._totals[name] += step.timing.get(name, 0)
        self.forget(now)

    def forget(self, now_ns: int) -> None:
        """Keep the steps that ended in the seconds before ``now_ns``."""
        while self._steps and self._steps[0][0] < now_ns - self._window_ns:
            _, step = self._steps.popleft()
            for name in _TIMES:
                self._totals[name] -= step.timing.get(name, 0)

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def first_step(self) -> int:
        return self._steps[0][1].step

    def share(self, *names: str) -> float:
        """Part of the time that these took together."""
        whole = max(self._totals["duration_ns"], self._window_ns)
        return sum(self._totals[name] for name in names) / whole


class HostBound(ProfilerRule):
    """GPUs wait for the host, which cannot launch their work as fast as they do it.

    While a GPU is idle the host is somewhere in the step. What it spends outside of the forward pass, the backward pass
    and the optimizer's step can account for that much idle time and no more; the rest has passed in these, where the
    host gives the GPU its work. So the share of the time in these phases, less the share in which the GPUs were
    in use, is what the host costs at least. Waiting in collectives is left out, and the GPUs of a job are added up, so
    that stages which take turns do not count as idle.

    Args:
        share: share of the time that is too much, above 0.
        seconds: how long it must last.
        steps: training steps of each rank that must have ended meanwhile.
    """

    metrics = frozenset({"utilization_percent"})
    seldom = frozenset({"own_memory_bytes"})

    calibrated = (("share", "higher"),)

    def __init__(self, *, share: float = 0.4, seconds: float = 120.0, steps: int = 10) -> None:
        super().__init__()
        self.share = positive("share", share)
        self.seconds = positive("seconds", seconds)
        self.least = positive("steps", steps)
        self.moments = Thinned(seconds)
        self._gpus = JobGpus()
        self._issued: dict[int, _Issued] = {}
        self._use: dict[str, Window] = {}
        self._means: dict[str, float] = {}
        self._judged = False
        self._highest = 0.0
        self._said = False

    def judge_step(self, step: Step) -> None:
        """See the base class."""
        self._gpus.see_step(step)
        if step.training:
            self._issued.setdefault(step.rank, _Issued(self.seconds)).add(step)

    def judge_sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        self._gpus.see_sample(sample)
        if self._said or not self.due(sample):
            return
        for uuid, use in sample.of("utilization_percent"):
            window = self._use.setdefault(uuid, Window(self.seconds))
            mean = window.add(sample.seconds, use)
            if mean is not None:
                self._means[uuid] = mean / 100
        used = {uuid: mean for uuid, mean in self._means.items() if uuid in self._gpus}
        for issued in self._issued.values():
            issued.forget(sample.time_ns)
        ranks = len(self._issued)
        if not ranks or not ranks <= self._gpus.ranks <= len(used):
            return
        if min(map(len, self._issued.values())) >= self.least:
            yield from self._judge(used)

    def _judge(self, used: dict[str, float]) -> Iterator[Finding]:
        self._judged = True
        every, ranks = self._issued.values(), len(self._issued)
        phases = {phase: sum(each.share(f"{phase}_ns") for each in every) / ranks for phase in _ADVICE}
        waited = sum(each.share("collective_ns") for each in every) / ranks
        issuing, use = sum(phases.values()) - waited, sum(used.values()) / ranks
        value = issuing - use
        self._highest = max(self._highest, value)
        if value < self.share:
            return
        self._said = True
        phase = max(phases, key=phases.__getitem__)
        yield self.found(
            first_step=min(each.first_step for each in every),
            devices=list(used),
            value=value,
            threshold=self.share,
            message=f"the host gives the GPU(s) their work for {100 * issuing:.0f} % of the time, and they are in use "
            f"{100 * use:.0f} % of it: for at least {100 * value:.0f} % they wait for the host, mostly in the "
            f"{_SPELLED[phase]}",
            suggestion=_ADVICE[phase],
            evidence={"phase": phase, "issuing_share": issuing, "utilization": use, "share_by_phase": phases},
        )

    def missing(self) -> str:
        """See the base class."""
        if not self._use:
            return "no GPU was sampled"
        if not self._gpus.ranks:
            return "the job does not train on a GPU"
        if not self._judged:
            return f"less than {self.seconds:g} s or {self.least:g} steps on a GPU for each rank"
        return ""

    def margin(self) -> float | None:
        """See the base class."""
        return max(self._highest, 0.0) / self.share if self._judged else None


_SPELLED = {"forward": "forward pass", "backward": "backward pass", "optimizer": "optimizer's step"}
