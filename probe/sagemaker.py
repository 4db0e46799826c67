"""A SageMaker training container: where its configuration lies, where output is collected, how a stop is reported.

Configuration is what the service puts below ``/opt/ml/input/config``: ``debughookconfig.json`` and
``profilerconfig.json``, or the files that ``SMDEBUG_CONFIG_FILE_PATH`` and ``SMPROFILER_CONFIG_PATH`` name. A
CreateTrainingJob request and an answer of DescribeTrainingJob hold the same, as ``DebugHookConfig`` and
``ProfilerConfig``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwatch.probe.reductions import ReductionConfig
from stepwatch.probe.smdebug.errors import SMDebugValueError
from stepwatch.probe.smdebug.json_config import DEFAULT_PATH as HOOK_CONFIG
from stepwatch.probe.smdebug.json_config import PATH_VARIABLE as HOOK_CONFIG_VARIABLE
from stepwatch.probe.smdebug.json_config import arguments_of

log = logging.getLogger("stepwatch")

ON_STOP = "STEPWATCH_ON_STOP"
"""What a stop makes of the training job: ``failure`` (default), with the reason in DescribeTrainingJob, or
``success``: status 0, so that the service keeps the model."""

_PROFILER_CONFIG = "/opt/ml/input/config/profilerconfig.json"
_PROFILER_CONFIG_VARIABLE = "SMPROFILER_CONFIG_PATH"
_INTERVALS = (100, 200, 500, 1000, 5000, 60000)  # milliseconds
_MAX_REASON = 1024  # characters that the service keeps


def in_container() -> bool:
    """Whether this process is part of a SageMaker training job."""
    return bool(os.environ.get("TRAINING_JOB_NAME"))


def container_configuration() -> dict[str, Any]:
    """Arguments of a hook, as the service configures it in this container; none in its files, the defaults.

    Raises:
        ValueError: a file holds something else; the message names it.
    """
    hook, profiler = _read(HOOK_CONFIG_VARIABLE, HOOK_CONFIG), _read(_PROFILER_CONFIG_VARIABLE, _PROFILER_CONFIG)
    return {
        **({"out_dir": _unconfigured_output()} if hook is None else _of_hook(hook, "debughookconfig.json")),
        **({} if profiler is None else _of_profiler(profiler)),
        "job_name": os.environ.get("TRAINING_JOB_NAME"),
    }


def request_configuration(request: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a hook, as a CreateTrainingJob request or an answer of DescribeTrainingJob has them.

    ``out_dir`` is a path in the container.

    Raises:
        ValueError: something in it is not as the service wants it.
    """
    hook, profiler, job = (request.get(key) for key in ("DebugHookConfig", "ProfilerConfig", "TrainingJobName"))
    return {
        **(_of_hook(hook, "DebugHookConfig") if hook else {}),
        **(_of_profiler(profiler) if profiler else {}),
        **({"job_name": str(job)} if job else {}),
    }


def stop_succeeds() -> bool:
    """Whether a stop ends this container's job well.

    Raises:
        ValueError: the variable says neither.
    """
    said = os.environ.get(ON_STOP, "failure").strip().lower()
    if said not in ("failure", "success"):
        raise ValueError(f"{ON_STOP} is {said!r}; expected failure or success")
    return in_container() and said == "success"


def report_stop(reason: str) -> None:
    """Say why the job is stopped where the service looks for it; nothing outside a container."""
    if not in_container():
        return
    path = Path(os.environ.get("SM_OUTPUT_DIR", "/opt/ml/output")) / "failure"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(reason[:_MAX_REASON], encoding="utf-8")
    except OSError as error:
        log.warning("%s: the reason of the stop cannot be written: %s", path, error)


def _of_hook(content: Mapping[str, Any], what: str) -> dict[str, Any]:
    found = arguments_of(content, what)
    included = [*found["include_collections"], *(["all"] if found["save_all"] else [])]
    kept = {key: found[key] for key in ("out_dir", "save_config", "include_regex")}
    return {
        **kept,
        "include_collections": included,
        # Whole tensors where no reduction is named, as the service's own hook has it.
        "reduction_config": found["reduction_config"] or ReductionConfig(save_raw_tensor=True),
        "ranks": "all" if found["include_workers"] == "all" else "first",
    }


def _of_profiler(content: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise SMDebugValueError(f"ProfilerConfig is a {type(content).__name__}; expected an object")
    if str(content.get("DisableProfiler", False)).lower() == "true":
        return {"system_interval": 0.0}
    said = content.get("ProfilingIntervalInMilliseconds")
    if said is None:
        return {}
    if str(said) not in map(str, _INTERVALS):
        allowed = ", ".join(map(str, _INTERVALS))
        raise SMDebugValueError(f"ProfilingIntervalInMilliseconds is {said!r}; expected one of {allowed}")
    return {"system_interval": int(said) / 1000}


def _read(variable: str, default: str) -> Mapping[str, Any] | None:
    path = Path(os.environ.get(variable) or default)
    try:
        content = json.loads(path.read_bytes() or b"{}")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SMDebugValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, Mapping):
        raise SMDebugValueError(f"{path} is a {type(content).__name__}; expected an object")
    return content


def _unconfigured_output() -> str:
    # Tensors are collected where a DebugHookConfig says so; this folder always is, at the end of the job.
    return str(Path(os.environ.get("SM_OUTPUT_DATA_DIR", "/opt/ml/output/data")) / "stepwatch")
