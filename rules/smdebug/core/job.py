"""What kind of training job this process belongs to, and whether smdebug supports it."""

from __future__ import annotations

import json
import os
from typing import Any

from packaging import version

from stepwatch.probe.smdebug.errors import SMDebugNotImplementedError
from stepwatch.rules.smdebug.core.logger import get_logger
from stepwatch.rules.smdebug.core.utils import FRAMEWORK

_TORCH_FROM, _TORCH_BELOW = version.parse("1.5.0"), version.parse("3.0.0")
_SMALLEST_DATA_PARALLEL = 8  # processes; SageMaker's library needs a whole node of eight GPUs


def check_smmodelparallel_training() -> bool:
    """Whether the job uses SageMaker's library for model parallelism, as ``SM_HPS`` says."""
    parameters = _json_variable("SM_HPS").get("mp_parameters")
    return isinstance(parameters, dict) and not parameters.keys().isdisjoint(("partitions", "pipeline_parallel_degree"))


def check_smdataparallel_env() -> bool:
    """Whether the job uses SageMaker's library for data parallelism, as variables of the container and of MPI say."""
    enabled = _json_variable("SM_FRAMEWORK_PARAMS").get("sagemaker_distributed_dataparallel_enabled", False)
    return bool(enabled) and int(os.environ.get("OMPI_COMM_WORLD_SIZE", 0)) >= _SMALLEST_DATA_PARALLEL


def is_current_version_supported(pytorch_version: str | None = None) -> bool:
    """Whether this torch, or one of that version, can be recorded."""
    if pytorch_version is None:
        import torch

        pytorch_version = str(torch.__version__)
    return _TORCH_FROM <= version.parse(pytorch_version) < _TORCH_BELOW


def is_pt_1_5() -> bool:
    """Whether this is torch 1.5."""
    return _is_torch("1.5")


def is_pt_1_6() -> bool:
    """Whether this is torch 1.6."""
    return _is_torch("1.6")


def is_pt_1_7() -> bool:
    """Whether this is torch 1.7."""
    return _is_torch("1.7")


def is_pt_1_8() -> bool:
    """Whether this is torch 1.8."""
    return _is_torch("1.8")


def is_pt_1_9() -> bool:
    """Whether this is torch 1.9."""
    return _is_torch("1.9")


def _is_torch(release: str) -> bool:
    import torch

    return str(torch.__version__).startswith(f"{release}.")


def is_framework_version_supported(framework_type: FRAMEWORK) -> bool:
    """The same for a framework; of others than PyTorch no job is recorded.

    Raises:
        SMDebugNotImplementedError: it is none.
    """
    if framework_type not in FRAMEWORK:
        raise SMDebugNotImplementedError(f"framework is {framework_type!r}; expected a member of FRAMEWORK")
    return framework_type is FRAMEWORK.PYTORCH and is_current_version_supported()


class ConfigValidator:
    """Whether a job of a framework is to be recorded: not where ``USE_SMDEBUG`` is false or torch is too old."""

    def __init__(self, framework_type: FRAMEWORK) -> None:
        self._framework = framework_type

    def validate_training_job(self) -> bool:
        """Whether a hook may be made."""
        if os.environ.get("USE_SMDEBUG", "true").strip().lower() in ("0", "false", "f", "no", "n", "off"):
            return False
        supported = is_framework_version_supported(self._framework)
        if not supported:
            get_logger().warning(f"this version of {self._framework.value} is not supported: nothing is recorded")
        return supported

    @staticmethod
    def validate_profiler_config(profiler_config_parser: Any) -> None:
        """Disable detailed profiling where the job trains a model in parts."""
        if profiler_config_parser.profiling_enabled and check_smmodelparallel_training():
            profiler_config_parser.config.detailed_profiling_config.disabled = True
            get_logger().warning("Detailed profiling for model parallel training job is disabled.")


_validators: dict[FRAMEWORK, ConfigValidator] = {}


def get_config_validator(framework: FRAMEWORK) -> ConfigValidator:
    """The validator of a framework, made once."""
    return _validators.setdefault(framework, ConfigValidator(framework))


def reset_config_validator() -> None:
    """Forget it."""
    _validators.clear()


def _json_variable(name: str) -> dict[str, Any]:
    try:
        content = json.loads(os.environ.get(name) or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
