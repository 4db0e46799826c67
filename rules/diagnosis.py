"""Folds findings that belong together into one story, its likely root cause first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepwatch.rules.finding import Finding, Severity

CONSEQUENCES: dict[str, frozenset[str]] = {
    cause: frozenset(effects.split())
    for cause, effects in {
        "NonFiniteInput": "ExplodingTensor DivergingLoss UpdatesSkipped VanishingGradient UnchangedTensor StalledLoss "
        "LossNotDecreasing OscillatingLoss LossSpike DeadRelu",
        "InputNotNormalized": "PoorWeightInitialization NoBetterThanGuessing SaturatedActivation ExplodingTensor "
        "DivergingLoss DeadRelu OscillatingLoss LossSpike StalledLoss LossNotDecreasing VanishingGradient "
        "UnchangedTensor",
        "WrongLossInput": "NoBetterThanGuessing StalledLoss UnboundedLoss CollapsedOutput VanishingGradient DeadRelu "
        "SaturatedActivation ExplodingTensor DivergingLoss LossNotDecreasing NoGradient UnchangedTensor ClassImbalance "
        "UpdateTooSmall",
        "ConstantInput": "NoBetterThanGuessing StalledLoss ClassImbalance",
        "RepeatedBatch": "Overfit",
        "LabelsInOrder": "DeadRelu ExplodingTensor DivergingLoss CollapsedOutput VanishingGradient OscillatingLoss "
        "LossSpike NoBetterThanGuessing Overfit LossNotDecreasing StalledLoss "
        "ClassImbalance",
        "GradientsNotReset": "NoBetterThanGuessing ExplodingTensor DivergingLoss LossSpike OscillatingLoss DeadRelu "
        "StalledLoss LossNotDecreasing",
        "ZeroLearningRate": "NoBetterThanGuessing UpdateTooSmall UnchangedTensor StalledLoss",
        "LearningRateGrowing": "UpdateTooLarge ExplodingTensor DivergingLoss LossSpike OscillatingLoss DeadRelu "
        "LossNotDecreasing",
        "LearningRateDecayedEarly": "UpdateTooSmall StalledLoss UnchangedTensor",
        "MissingWarmUp": "DeadRelu SaturatedActivation LossSpike CollapsedOutput StalledLoss NoBetterThanGuessing "
        "VanishingGradient UnchangedTensor",
        "PoorWeightInitialization": "SymmetricUnits MissingWarmUp NoBetterThanGuessing SaturatedActivation "
        "ExplodingTensor DivergingLoss VanishingGradient DeadRelu "
        "UnchangedTensor StalledLoss",
        "SymmetricUnits": "StalledLoss NoBetterThanGuessing CollapsedOutput",
        "LabelsLookShuffled": "Overfit NoBetterThanGuessing StalledLoss",
        "WeightNormGrowth": "SaturatedActivation ExplodingActivation ExplodingTensor DivergingLoss LossNotDecreasing "
        "UpdateTooSmall",
        "ModelInEvalMode": "Overfit",
        "UpdatesSkipped": "LossScaleCollapse StalledLoss LossNotDecreasing UnchangedTensor",
        "LossScaleCollapse": "UpdatesSkipped StalledLoss LossNotDecreasing NoBetterThanGuessing",
        "PartInEvalMode": "Overfit",
        "ClippingAlwaysActive": "UpdateTooSmall StalledLoss UnchangedTensor NoBetterThanGuessing",
        "UpdateTooLarge": "ExplodingTensor DivergingLoss LossSpike OscillatingLoss DeadRelu SaturatedActivation "
        "LossNotDecreasing StalledLoss NoBetterThanGuessing",
        "UpdateTooSmall": "UnchangedTensor StalledLoss NoBetterThanGuessing",
        "OscillatingLoss": "ExplodingTensor DivergingLoss DeadRelu LossNotDecreasing StalledLoss",
        "ExplodingTensor": "MissingWarmUp ExplodingActivation CollapsedOutput UpdatesSkipped LossScaleCollapse "
        "DivergingLoss LossSpike OscillatingLoss DeadRelu "
        "VanishingGradient UnchangedTensor StalledLoss LossNotDecreasing SaturatedActivation",
        "LossSpike": "ExplodingTensor DivergingLoss OscillatingLoss DeadRelu SaturatedActivation StalledLoss "
        "LossNotDecreasing NoBetterThanGuessing",
        "UnboundedLoss": "ExplodingTensor SaturatedActivation",
        "DivergingLoss": "MissingWarmUp OscillatingLoss DeadRelu StalledLoss LossNotDecreasing Overfit",
        "DeadRelu": "CollapsedOutput NoBetterThanGuessing VanishingGradient NoGradient UnchangedTensor StalledLoss "
        "ClassImbalance",
        "SaturatedActivation": "NoBetterThanGuessing VanishingGradient NoGradient UnchangedTensor StalledLoss "
        "LossNotDecreasing ClassImbalance",
        "ExplodingActivation": "ExplodingTensor DivergingLoss LossSpike DeadRelu SaturatedActivation CollapsedOutput",
        "CollapsedOutput": "NoBetterThanGuessing StalledLoss VanishingGradient ClassImbalance",
        "AttentionCollapse": "LossSpike DivergingLoss StalledLoss LossNotDecreasing VanishingGradient",
        "VanishingGradient": "NoBetterThanGuessing NoGradient UnchangedTensor StalledLoss ClassImbalance",
        "NoGradient": "UnchangedTensor StalledLoss NoBetterThanGuessing",
        "UnchangedTensor": "NoBetterThanGuessing StalledLoss",
        "StalledLoss": "NoBetterThanGuessing LossNotDecreasing ClassImbalance",
        "DeviceErrors": "Hang",
        "MemoryLeak": "MemoryPressure Hang StepTimeDrift",
        "MemoryPressure": "Hang StepTimeDrift DataLoadingBound HostBound GpuStarved",
        "ContainerThrottled": "DataLoadingBound HostBound GpuStarved",
        "CpuContention": "HostBound GpuStarved StragglerRank SlowCheckpointing",
        "DataLoadingBound": "GpuStarved",
        "SlowCheckpointing": "GpuStarved",
        "StragglerRank": "CommunicationBound GpuStarved",
        "CommunicationBound": "GpuStarved",
        "HostBound": "GpuStarved SmallBatch",
        "GpuStarved": "SmallBatch",
        "GpuOverheating": "StragglerRank CommunicationBound StepTimeDrift",
    }.items()
}  # fmt: skip
"""What each problem can bring with it. Where two can bring each other, the one that began first is the cause."""

_ORDER = {rule: place for place, rule in enumerate(CONSEQUENCES)}
_SEVERITIES = (Severity.ERROR, Severity.WARNING, Severity.INFO)


@dataclass(frozen=True)
class Diagnosis:
    """One story: a likely root cause and the findings that it explains.

    Attributes:
        cause: the finding that explains the others.
        consequences: those others, in the order in which they began.
    """

    cause: Finding
    consequences: tuple[Finding, ...]

    @property
    def severity(self) -> Severity:
        """The gravest of its findings."""
        return min((f.severity for f in (self.cause, *self.consequences)), key=_SEVERITIES.index)

    @property
    def explains(self) -> list[str]:
        """Rules whose findings it explains, each once."""
        return list(dict.fromkeys(f.rule for f in self.consequences if f.rule != self.cause.rule))

    def to_json(self) -> dict[str, Any]:
        """The entry of ``diagnoses`` in ``analyze --json``."""
        return {
            "cause": self.cause.rule,
            "severity": self.severity.value,
            "first_step": self.cause.first_step,
            "rank": self.cause.rank,
            "message": self.cause.message,
            "suggestion": self.cause.suggestion,
            "explains": self.explains,
        }


def diagnose(findings: Sequence[Finding]) -> list[Diagnosis]:
    """Every finding in exactly one story; the gravest story first, then the one that began first."""
    roots: dict[int, list[Finding]] = {}
    causes = [_cause(index, findings) for index in range(len(findings))]
    by_root = {index: _root(index, causes, findings) for index in range(len(findings))}
    for index, root in by_root.items():
        roots.setdefault(root, [])
        if index != root:
            roots[root].append(findings[index])
    stories = [
        Diagnosis(findings[root], tuple(sorted(others, key=lambda f: (f.first_step, f.rank))))
        for root, others in roots.items()
    ]
    return sorted(stories, key=lambda story: (_SEVERITIES.index(story.severity), _began(story.cause)))


def _cause(index: int, findings: Sequence[Finding]) -> int | None:
    causes = [place for place, cause in enumerate(findings) if place != index and _explains(cause, findings[index])]
    return min(causes, key=lambda place: (_began(findings[place]), place), default=None)


def _root(index: int, causes: Sequence[int | None], findings: Sequence[Finding]) -> int:
    """Follow causes to the first; where they explain each other in a circle, to the one that began first."""
    path = [index]
    while (cause := causes[path[-1]]) is not None:
        if cause in path:
            return min(path[path.index(cause) :], key=lambda place: (_began(findings[place]), place))
        path.append(cause)
    return path[-1]


def _explains(cause: Finding, effect: Finding) -> bool:
    if cause.rule == effect.rule:
        return _began(cause) < _began(effect)  # the same on another rank, or again
    if effect.rule not in CONSEQUENCES.get(cause.rule, ()):
        return False
    if cause.rule in CONSEQUENCES.get(effect.rule, ()):
        return _began(cause) < _began(effect)
    return cause.first_step <= effect.last_step


def _began(finding: Finding) -> tuple[int, int, int]:
    return finding.first_step, _ORDER.get(finding.rule, len(_ORDER)), finding.rank
