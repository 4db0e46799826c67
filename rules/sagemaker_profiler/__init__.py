"""The profiler rules of SageMaker Debugger, by their names, parameters and the defaults that ran."""

from __future__ import annotations

from stepwatch.rules.rule import Rule
from stepwatch.rules.sagemaker_profiler.framework import (
    Dataloader,
    MaxInitializationTime,
    OverallFrameworkMetrics,
    StepOutlier,
)
from stepwatch.rules.sagemaker_profiler.gpus import GPUMemoryIncrease, LoadBalancing, LowGPUUtilization
from stepwatch.rules.sagemaker_profiler.report import ProfilerReport
from stepwatch.rules.sagemaker_profiler.system import (
    BatchSize,
    CPUBottleneck,
    IOBottleneck,
    OverallSystemUsage,
)

SAGEMAKER_PROFILER: tuple[type[Rule], ...] = (
    BatchSize,
    CPUBottleneck,
    Dataloader,
    GPUMemoryIncrease,
    IOBottleneck,
    LoadBalancing,
    LowGPUUtilization,
    MaxInitializationTime,
    OverallSystemUsage,
    OverallFrameworkMetrics,
    StepOutlier,
    ProfilerReport,
)
