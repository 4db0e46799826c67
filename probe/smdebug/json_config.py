"""The JSON files by which SageMaker configures a hook."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.collection import Collection, CollectionManager
from stepwatch.probe.smdebug.configuration import ReductionConfig, SaveConfig, SaveConfigMode
from stepwatch.probe.smdebug.errors import SMDebugValueError

PATH_VARIABLE = "SMDEBUG_CONFIG_FILE_PATH"
DEFAULT_PATH = "/opt/ml/input/config/debughookconfig.json"
DEFAULT_OUT_DIR = "/opt/ml/output/tensors"

TENSORBOARD_VARIABLE = "TENSORBOARD_CONFIG_FILE_PATH"
DEFAULT_TENSORBOARD_PATH = "/opt/ml/input/config/tensorboardoutputconfig.json"

_STEP_KEYS = ("save_interval", "start_step", "end_step", "save_steps")


def hook_arguments(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Arguments of smdebug's hook that a JSON file stands for.

    Args:
        path: the file; by default the one that ``SMDEBUG_CONFIG_FILE_PATH`` names, or SageMaker's.

    Raises:
        FileNotFoundError: there is no such file.
        SMDebugValueError: it holds something else.
    """
    file = Path(path or os.environ.get(PATH_VARIABLE) or DEFAULT_PATH)
    return arguments_of(_read(file), str(file))


def arguments_of(content: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The same for the content of such a file, or a request's ``DebugHookConfig``.

    Args:
        content: the object.
        what: its name in errors.

    Raises:
        SMDebugValueError: it holds something else.
    """
    content = _object(content, what)
    hook = _object(content.get("HookParameters") or {}, f"{what}: HookParameters")
    save_config = SaveConfig({mode: _schedule(f"{what}: HookParameters", hook, {}, mode) for mode in ModeKeys})
    manager = CollectionManager()
    names = []
    for entry in content.get("CollectionConfigurations") or ():
        name = _object(entry, f"{what}: a collection").get("CollectionName")
        if not name:
            raise SMDebugValueError(f"{what}: a collection has no CollectionName")
        parameters = _object(entry.get("CollectionParameters") or {}, f"{what}: CollectionParameters of {name}")
        names.append(str(name))
        _configure(f"{what}: CollectionParameters of {name}", manager.get(str(name)), hook, parameters)
    in_job = "TRAINING_JOB_NAME" in os.environ
    tensorboard = tensorboard_directory() if in_job else hook.get("tensorboard_dir")
    return {
        "export_tensorboard": bool(tensorboard) if in_job else _flag(hook.get("export_tensorboard", False)),
        "tensorboard_dir": tensorboard,
        "out_dir": content.get("LocalPath") or DEFAULT_OUT_DIR,
        "save_config": save_config,
        "reduction_config": _reductions(hook),
        "include_regex": _words(hook.get("include_regex")) or None,
        "include_collections": [manager.get(name) for name in names],
        "save_all": _flag(hook.get("save_all", False)),
        "include_workers": str(hook.get("include_workers", "one")),
    }


def tensorboard_directory() -> str | None:
    """Directory for TensorBoard that SageMaker's file names, or None."""
    file = Path(os.environ.get(TENSORBOARD_VARIABLE) or DEFAULT_TENSORBOARD_PATH)
    found = _read(file).get("LocalPath") if file.is_file() else None
    return None if found is None else str(found)


def _configure(what: str, collection: Collection, hook: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    collection.include(_words(parameters.get("include_regex")))
    if any(key.rpartition(".")[2] in _STEP_KEYS for key in parameters):
        collection.save_config = SaveConfig({mode: _schedule(what, hook, parameters, mode) for mode in ModeKeys})
    collection.reduction_config = _reductions(parameters)
    collection.save_histogram = _flag(parameters.get("save_histogram", True))


def _schedule(what: str, hook: Mapping[str, Any], parameters: Mapping[str, Any], mode: ModeKeys) -> SaveConfigMode:
    """Schedule of a mode: what is said for the mode goes before what is said for all, a collection before the hook."""
    found: dict[str, Any] = {}
    for source in (hook, parameters):
        for prefix in ("", f"{mode.name.lower()}."):
            found.update({key: source[prefix + key] for key in _STEP_KEYS if prefix + key in source})
    try:
        if isinstance(found.get("save_steps"), str):
            found["save_steps"] = [int(step) for step in _words(found["save_steps"])]
        return SaveConfigMode(**found)
    except ValueError as error:
        raise SMDebugValueError(f"{what}: steps of mode {mode.name}: {error}") from None


def _reductions(parameters: Mapping[str, Any]) -> ReductionConfig | None:
    """As smdebug, which looks at the flags only where reductions are given."""
    if "reductions" not in parameters:
        return None
    flags = {key: _flag(parameters[key]) for key in ("save_raw_tensor", "save_shape") if key in parameters}
    return ReductionConfig.from_dict({"reductions": parameters["reductions"], **flags})


def _words(value: Any) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else value or ()
    return [str(part).strip() for part in parts if str(part).strip()]


def _flag(value: Any) -> bool:
    return value if isinstance(value, bool) else str(value).strip().lower() == "true"


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SMDebugValueError(f"{what} is a {type(value).__name__}; expected an object")
    return value


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise SMDebugValueError(f"{file}: not valid JSON: {error}") from None
    return _object(content, str(file))
