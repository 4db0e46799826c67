"""The built-in debugging rules of SageMaker Debugger, under their names, parameters, defaults and meaning."""

from __future__ import annotations

from stepwatch.rules.rule import Rule
from stepwatch.rules.sagemaker.activations import DeadRelu, SaturatedActivation
from stepwatch.rules.sagemaker.confusion import Confusion
from stepwatch.rules.sagemaker.data import CheckInputImages, ClassImbalance, NLPSequenceRatio
from stepwatch.rules.sagemaker.gradients import ExplodingTensor, PoorWeightInitialization, VanishingGradient
from stepwatch.rules.sagemaker.loss import LossNotDecreasing, Overfit, Overtraining
from stepwatch.rules.sagemaker.runs import SimilarAcrossRuns, StalledTrainingRule
from stepwatch.rules.sagemaker.tensors import AllZero, TensorVariance, UnchangedTensor, WeightUpdateRatio
from stepwatch.rules.sagemaker.trees import CreateXgboostReport, FeatureImportanceOverweight, TreeDepth

SAGEMAKER: tuple[type[Rule], ...] = (
    VanishingGradient,
    ExplodingTensor,
    PoorWeightInitialization,
    SaturatedActivation,
    DeadRelu,
    WeightUpdateRatio,
    AllZero,
    ClassImbalance,
    LossNotDecreasing,
    Overfit,
    Overtraining,
    SimilarAcrossRuns,
    StalledTrainingRule,
    TensorVariance,
    UnchangedTensor,
    CheckInputImages,
    NLPSequenceRatio,
    Confusion,
    TreeDepth,
    FeatureImportanceOverweight,
    CreateXgboostReport,
)
"""In the order of SageMaker's documentation."""
