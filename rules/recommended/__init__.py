"""The default rules, calibrated so that a healthy run is quiet."""

from __future__ import annotations

from stepwatch.rules.recommended.activations import DeadRelu, SaturatedActivation
from stepwatch.rules.recommended.adjustments import ClippingAlwaysActive, LossScaleCollapse
from stepwatch.rules.recommended.baseline import WorseThanBaseline
from stepwatch.rules.recommended.batches import LabelsInOrder, MostlyPadding, RepeatedBatch
from stepwatch.rules.recommended.data import ClassImbalance
from stepwatch.rules.recommended.generalisation import Overfit
from stepwatch.rules.recommended.gradients import ExplodingTensor, VanishingGradient
from stepwatch.rules.recommended.growth import WeightNormGrowth
from stepwatch.rules.recommended.inputs import ConstantInput, InputNotNormalized, NonFiniteInput
from stepwatch.rules.recommended.leaks import LabelsLookShuffled, SolvedAtOnce
from stepwatch.rules.recommended.loop import (
    GradientsNotReset,
    ModelInEvalMode,
    PartInEvalMode,
    UpdatesSkipped,
    ZeroLearningRate,
)
from stepwatch.rules.recommended.loss import DivergingLoss, LossNotDecreasing, OscillatingLoss
from stepwatch.rules.recommended.loss_inputs import WrongLossInput
from stepwatch.rules.recommended.noise import GradientNoiseScale
from stepwatch.rules.recommended.objective import NoBetterThanGuessing, StalledLoss, UnboundedLoss
from stepwatch.rules.recommended.parameters import NoGradient
from stepwatch.rules.recommended.replicas import ReplicaDrift
from stepwatch.rules.recommended.representations import AttentionCollapse, CollapsedOutput, ExplodingActivation
from stepwatch.rules.recommended.schedule import LearningRateDecayedEarly, LearningRateGrowing
from stepwatch.rules.recommended.spikes import LossSpike
from stepwatch.rules.recommended.symmetry import SymmetricUnits
from stepwatch.rules.recommended.updates import UpdateTooLarge, UpdateTooSmall
from stepwatch.rules.recommended.warm_up import MissingWarmUp
from stepwatch.rules.recommended.weights import PoorWeightInitialization, UnchangedTensor
from stepwatch.rules.rule import Rule

RECOMMENDED: tuple[type[Rule], ...] = (
    GradientsNotReset,
    ZeroLearningRate,
    LearningRateGrowing,
    LearningRateDecayedEarly,
    MissingWarmUp,
    UpdatesSkipped,
    NonFiniteInput,
    WrongLossInput,
    LossScaleCollapse,
    ClippingAlwaysActive,
    ExplodingTensor,
    ReplicaDrift,
    DivergingLoss,
    VanishingGradient,
    DeadRelu,
    SaturatedActivation,
    ExplodingActivation,
    CollapsedOutput,
    AttentionCollapse,
    InputNotNormalized,
    PoorWeightInitialization,
    SymmetricUnits,
    UnchangedTensor,
    NoGradient,
    UpdateTooLarge,
    UpdateTooSmall,
    WeightNormGrowth,
    ModelInEvalMode,
    PartInEvalMode,
    StalledLoss,
    LossNotDecreasing,
    LossSpike,
    OscillatingLoss,
    UnboundedLoss,
    NoBetterThanGuessing,
    LabelsLookShuffled,
    SolvedAtOnce,
    Overfit,
    WorseThanBaseline,
    ClassImbalance,
    ConstantInput,
    RepeatedBatch,
    LabelsInOrder,
    MostlyPadding,
    GradientNoiseScale,
)
"""In the order in which they are reported: the loop itself first, then what corrupts, then what wastes time."""
