"""How smdebug finds out what to do: directories, JSON files, the container."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.errors import SMDebugRuntimeError
from stepwatch.probe.smdebug.json_config import DEFAULT_OUT_DIR, hook_arguments
from stepwatch.rules.smdebug.core.access import check_dir_exists
from stepwatch.rules.smdebug.core.constants import DEFAULT_RESOURCE_CONFIG_FILE
from stepwatch.rules.smdebug.core.utils import is_s3


def is_sagemaker_job() -> bool:
    """Whether this process is part of a SageMaker training job."""
    return "TRAINING_JOB_NAME" in os.environ


def verify_and_get_out_dir(out_dir: str | None) -> str:
    """The directory to record into.

    Raises:
        RuntimeError: there is none.
        SMDebugRuntimeError: a job that is over was recorded there.
    """
    if is_sagemaker_job():
        return out_dir or DEFAULT_OUT_DIR
    if out_dir is None:
        raise RuntimeError("out_dir is None; expected the directory to record into")
    place = out_dir if is_s3(out_dir)[0] else os.path.expanduser(out_dir)
    if check_dir_exists(place):
        raise SMDebugRuntimeError(f"{place}: a job that is over was recorded there; expected a new directory")
    return place


def get_tensorboard_dir(export_tensorboard: bool, tensorboard_dir: str | None, out_dir: str) -> str | None:
    """Directory for TensorBoard, where it is wanted."""
    if not export_tensorboard:
        return None
    return tensorboard_dir or os.path.join(out_dir, "tensorboard")


def get_json_config_as_dict(json_config_path: str) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
    """
    content: dict[str, Any] = json.loads(Path(json_config_path).read_text(encoding="utf-8"))
    return content


def create_hook_from_json_config(
    hook_cls: Any, json_config_path: str | None = None, default_values: Mapping[str, Any] | None = None
) -> Any:
    """A hook as a JSON file says; what that leaves out is as given."""
    return hook_cls(**{**(default_values or {}), **hook_arguments(json_config_path)})


def get_include_collections(params_dict: Mapping[str, Any]) -> list[str]:
    """Names of the collections that a configuration lists."""
    return [entry["CollectionName"] for entry in params_dict.get("CollectionConfigurations") or ()]


def parse_save_config_dict(params: Mapping[str, Any], mode: ModeKeys | None = None) -> dict[str, Any]:
    """Which steps are saved, of the keys without a prefix or of those of a mode."""
    prefix = "" if mode is None else f"{mode.name.lower()}."
    found: dict[str, Any] = {}
    for key in ("save_interval", "start_step", "end_step", "save_steps"):
        if (value := params.get(prefix + key)) is not None:
            steps = key == "save_steps" and isinstance(value, str)
            found[key] = [int(step) for step in value.split(",")] if steps else value
    return found


def parse_save_config_modes_dict(
    params: Mapping[str, Any], base_config_modes: Mapping[ModeKeys, Mapping[str, Any]] | None = None
) -> dict[ModeKeys, dict[str, Any]]:
    """The same for each mode: what is said for all of them, and above it what is said for one."""
    base, every = base_config_modes or {}, parse_save_config_dict(params)
    return {mode: {**base.get(mode, {}), **every, **parse_save_config_dict(params, mode)} for mode in ModeKeys}


def get_node_id_from_resource_config() -> str | None:
    """Name of this node in a SageMaker job, or None."""
    try:
        found = get_json_config_as_dict(DEFAULT_RESOURCE_CONFIG_FILE).get("current_host")
    except (FileNotFoundError, ValueError):
        return None
    return None if found is None else str(found)
