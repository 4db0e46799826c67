"""SageMaker's rule that runs all others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import Layout, Sample
from stepwatch.rules.sagemaker_profiler.base import ScannedRule
from stepwatch.rules.sagemaker_profiler.framework import (
    Dataloader,
    MaxInitializationTime,
    OverallFrameworkMetrics,
    StepOutlier,
)
from stepwatch.rules.sagemaker_profiler.gpus import GPUMemoryIncrease, LoadBalancing, LowGPUUtilization
from stepwatch.rules.sagemaker_profiler.system import (
    BatchSize,
    CPUBottleneck,
    IOBottleneck,
    OverallSystemUsage,
)
from stepwatch.rules.step import Step

_PARTS: tuple[type[ScannedRule], ...] = (
    CPUBottleneck,
    IOBottleneck,
    LowGPUUtilization,
    StepOutlier,
    GPUMemoryIncrease,
    BatchSize,
    MaxInitializationTime,
    LoadBalancing,
    OverallSystemUsage,
    Dataloader,
    OverallFrameworkMetrics,
)
_OWN_DEFAULTS: dict[type[ScannedRule], dict[str, Any]] = {LoadBalancing: {"threshold": 0.2}}


class ProfilerReport(ScannedRule):
    """Runs all other profiler rules; fires at the end of the run where one of them has fired.

    Args:
        settings: parameters of the others, ``CPUBottleneck_cpu_threshold=90`` each.
        scan_interval_us: microseconds between evaluations.
    """

    def __init__(self, *, settings: tuple[str, ...] = (), scan_interval_us: int = 60_000_000) -> None:
        super().__init__(scan_interval_us)
        self.settings = settings
        chosen = _parameters(settings)
        self.parts: list[ScannedRule] = [
            part(**{**_OWN_DEFAULTS.get(part, {}), **chosen.get(part, {}), "scan_interval_us": scan_interval_us})
            for part in _PARTS
        ]
        self._failed: dict[str, str] = {}
        self._fired: list[Finding] = []

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        super().observe(step)
        for part in self._running():
            self._ask(part, lambda part=part: part.observe(step))  # type: ignore[misc]
        return iter(())

    def takes(self, layout: Layout) -> bool:
        """See the base class."""
        for part in self.parts:
            part.takes(layout)
        return super().takes(layout)

    def sample(self, sample: Sample) -> Iterator[Finding]:
        """See the base class."""
        super().sample(sample)
        for part in self._running():
            self._ask(part, lambda part=part: part.sample(sample))  # type: ignore[misc]
        return iter(())

    def conclude(self) -> Iterator[Finding]:
        """See the base class."""
        for part in self._running():
            self._ask(part, lambda part=part: part.conclude())  # type: ignore[misc]
        if self._fired:
            rules = list(dict.fromkeys(finding.rule for finding in self._fired))
            first = self._fired[0]
            yield self.found(
                first_step=min(finding.first_step for finding in self._fired),
                value=len(rules),
                threshold=0,
                message=f"{len(rules)} of the rules fired: {', '.join(rules)}; the first: {first.message}",
                suggestion=first.suggestion,
                evidence={"findings": [finding.to_json() for finding in self._fired]},
            )

    def scan(self) -> Iterator[Finding]:
        """See the base class."""
        return iter(())

    def reports(self) -> dict[str, dict[str, Any]]:
        """Reports of the rules that looked at something, by name: what SageMaker writes as ``<Rule>.json``."""
        return {part.name: part.report() for part in self.parts if part.datapoints}

    def missing(self) -> str:
        """See the base class."""
        return "" if self.steps or self.sampled else "neither steps nor samples were recorded"

    def _running(self) -> Iterator[ScannedRule]:
        return (part for part in self.parts if part.name not in self._failed)

    def _ask(self, part: ScannedRule, question: Any) -> None:
        try:
            self._fired += list(question() or ())
        except Exception as error:  # as in SageMaker, the others go on
            self._failed[part.name] = str(error)


def report_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Our parameters of ProfilerReport from those of SageMaker, where each of another rule is one of its own.

    ``opt_out_telemetry`` is dropped: nothing is sent anywhere.
    """
    own = {name: value for name, value in given.items() if name in ("scan_interval_us", "settings")}
    others = {name: value for name, value in given.items() if name not in (*own, "opt_out_telemetry")}
    return {**own, "settings": tuple(f"{name}={value}" for name, value in others.items())} if others else own


def _parameters(settings: Sequence[str]) -> dict[type[ScannedRule], dict[str, Any]]:
    by_name = {part.__name__.lower(): part for part in _PARTS}
    chosen: dict[type[ScannedRule], dict[str, Any]] = {}
    for setting in settings:
        target, equals, text = setting.partition("=")
        rule, _, parameter = target.strip().partition("_")
        part = by_name.get(rule.lower())
        if not equals or part is None:
            raise ValueError(
                f"settings has {setting!r}; expected Rule_parameter=value, Rule one of {', '.join(by_name)}"
            )
        defaults = inspect.getfullargspec(part.__init__).kwonlydefaults or {}
        if parameter not in defaults:
            raise ValueError(f"settings has {setting!r}; {part.__name__} has {', '.join(defaults)}")
        chosen.setdefault(part, {})[parameter] = _number(text.strip(), defaults[parameter])
    return chosen


def _number(text: str, default: Any) -> Any:
    if isinstance(default, int):
        return int(text) if text.lstrip("-").isdigit() else float(text)
    return text
