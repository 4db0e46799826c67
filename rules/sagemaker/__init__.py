"""The built-in debugging rules of SageMaker Debugger, under their names, parameters, defaults and meaning."""

from __future__ import annotations

from stepwatch.rules.rule import Rule
from stepwatch.rules.sagemaker.activations import DeadRelu, SaturatedActivation
from stepwatch.rules.sagemaker.gradients import ExplodingTensor, PoorWeightInitialization, VanishingGradient
from stepwatch.rules.sagemaker.loss import LossNotDecreasing, Overfit, Overtraining
from stepwatch.rules.sagemaker.tensors import AllZero, TensorVariance, UnchangedTensor, WeightUpdateRatio

SAGEMAKER: tuple[type[Rule], ...] = (
    VanishingGradient,
    ExplodingTensor,
    PoorWeightInitialization,
    SaturatedActivation,
    DeadRelu,
    WeightUpdateRatio,
    AllZero,
    LossNotDecreasing,
    Overfit,
    Overtraining,
    TensorVariance,
    UnchangedTensor,
)
"""In the order of SageMaker's documentation."""
