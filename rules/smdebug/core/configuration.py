"""How smdebug finds out what to do: directories, JSON files, the container."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.collection import CollectionManager
from stepwatch.probe.smdebug.configuration import ReductionConfig, SaveConfig, SaveConfigMode
from stepwatch.probe.smdebug.errors import SMDebugRuntimeError, SMDebugValueError
from stepwatch.probe.smdebug.json_config import DEFAULT_OUT_DIR, hook_arguments, tensorboard_directory
from stepwatch.rules.smdebug.core.access import check_dir_exists
from stepwatch.rules.smdebug.core.constants import (
    CONFIG_COLLECTION_CONFIG_KEY,
    CONFIG_COLLECTION_NAME_KEY,
    CONFIG_COLLECTION_PARAMS_KEY,
    CONFIG_FILE_PATH_ENV_STR,
    CONFIG_HOOK_PARAMS_KEY,
    CONFIG_INCLUDE_REGEX_KEY,
    CONFIG_INCLUDE_WORKERS_KEY,
    CONFIG_OUTDIR_KEY,
    CONFIG_RDN_CFG_KEY,
    CONFIG_REDUCTION_CONFIGS_KEY,
    CONFIG_SAVE_ALL_KEY,
    CONFIG_SAVE_CONFIGS_KEY,
    DEFAULT_CONFIG_FILE_PATH,
    EXPORT_TENSORBOARD_KEY,
    TENSORBOARD_DIR_KEY,
)
from stepwatch.rules.smdebug.core.utils import is_s3, split
from stepwatch.rules.smdebug.helpers import parse_bool


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


def get_json_config_as_dict(json_config_path: str | None) -> dict[str, Any]:
    """What a JSON file holds; without a path the one that ``SMDEBUG_CONFIG_FILE_PATH`` names, or SageMaker's.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = json_config_path or os.environ.get(CONFIG_FILE_PATH_ENV_STR, DEFAULT_CONFIG_FILE_PATH)
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return content


def get_tensorboard_dir_from_json_config() -> str | None:
    """Directory for TensorBoard in the file that ``TENSORBOARD_CONFIG_FILE_PATH`` names, or SageMaker's; or None."""
    return tensorboard_directory()


def collect_hook_config_params(params_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a hook in the content of its JSON file; ``save_config_modes`` holds keys of schedules by mode."""
    hook = params_dict.get(CONFIG_HOOK_PARAMS_KEY) or {}
    found: dict[str, Any] = {
        CONFIG_RDN_CFG_KEY: ReductionConfig.from_dict(hook) if "reductions" in hook else None,
        CONFIG_REDUCTION_CONFIGS_KEY: {},
        CONFIG_SAVE_CONFIGS_KEY: {},
        CONFIG_INCLUDE_REGEX_KEY: split(hook["include_regex"]) if "include_regex" in hook else None,
        "out_dir": params_dict.get(CONFIG_OUTDIR_KEY, DEFAULT_OUT_DIR),
        "save_config_modes": parse_save_config_modes_dict(hook),
        EXPORT_TENSORBOARD_KEY: parse_bool(hook.get(EXPORT_TENSORBOARD_KEY), False),
        TENSORBOARD_DIR_KEY: tensorboard_directory() if is_sagemaker_job() else hook.get(TENSORBOARD_DIR_KEY),
    }
    if CONFIG_SAVE_ALL_KEY in hook:
        found[CONFIG_SAVE_ALL_KEY] = parse_bool(hook[CONFIG_SAVE_ALL_KEY], False)
    if CONFIG_INCLUDE_WORKERS_KEY in hook:
        found[CONFIG_INCLUDE_WORKERS_KEY] = hook[CONFIG_INCLUDE_WORKERS_KEY]
    return found


def add_collections_to_manager(
    collection_manager: CollectionManager, params_dict: Mapping[str, Any], hook_params: Mapping[str, Any]
) -> None:
    """Configure the collections of a manager as the content of a JSON file says.

    Args:
        collection_manager: the manager; collections that it lacks are made.
        params_dict: the content.
        hook_params: what :func:`collect_hook_config_params` gave for it.

    Raises:
        SMDebugValueError: a collection has no name.
    """
    names = get_include_collections(params_dict) or []
    for name, entry in zip(names, params_dict.get(CONFIG_COLLECTION_CONFIG_KEY) or (), strict=True):
        parameters = entry.get(CONFIG_COLLECTION_PARAMS_KEY) or {}
        collection = collection_manager.get(name)
        schedules = parse_save_config_modes_dict(parameters, hook_params["save_config_modes"])
        collection.save_config = SaveConfig({mode: SaveConfigMode.from_dict(each) for mode, each in schedules.items()})
        if "reductions" in parameters:
            collection.reduction_config = ReductionConfig.from_dict(parameters)
        if "include_regex" in parameters:
            collection.include(split(parameters["include_regex"]))
        if "save_histogram" in parameters:
            collection.save_histogram = parse_bool(parameters["save_histogram"], True)


def create_hook_from_json_config(
    hook_cls: Any, json_config_path: str | None = None, default_values: Mapping[str, Any] | None = None
) -> Any:
    """A hook as a JSON file says; what that leaves out is as given."""
    return hook_cls(**{**(default_values or {}), **hook_arguments(json_config_path)})


def get_include_collections(params_dict: Mapping[str, Any]) -> list[str] | None:
    """Names of the collections that a configuration lists; None where it lists none.

    Raises:
        SMDebugValueError: a collection has no name.
    """
    listed = params_dict.get(CONFIG_COLLECTION_CONFIG_KEY)
    if listed is None:
        return None
    if any(CONFIG_COLLECTION_NAME_KEY not in entry for entry in listed):
        raise SMDebugValueError(f"a collection of the configuration has no {CONFIG_COLLECTION_NAME_KEY}")
    return [entry[CONFIG_COLLECTION_NAME_KEY] for entry in listed]


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
