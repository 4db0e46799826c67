"""Which names smdebug's modules have here, and where they come from."""

from __future__ import annotations

import importlib
from typing import Any

_RULES = "stepwatch.rules.smdebug.rule"
_ACTIONS = "stepwatch.rules.smdebug.action"
_TRIALS = "stepwatch.rules.smdebug.trials"
_HELPERS = "stepwatch.rules.smdebug.helpers"
_EXCEPTIONS = "stepwatch.rules.smdebug.exceptions"
_SAVING = "stepwatch.probe.smdebug.configuration"
_COLLECTIONS = "stepwatch.probe.smdebug.collection"
_HOOK = "stepwatch.probe.smdebug.hook"
_CONFIGURATION = {
    "stepwatch.probe.mode_keys": "modes ModeKeys",
    _SAVING: "SaveConfig SaveConfigMode ReductionConfig",
    _COLLECTIONS: "Collection CollectionKeys",
}

MODULES: dict[str, dict[str, str]] = {
    "smdebug": _CONFIGURATION,
    "smdebug.modes": {"stepwatch.probe.mode_keys": "modes ModeKeys"},
    "smdebug.exceptions": {_EXCEPTIONS: "*", "stepwatch.probe.mode_keys": "modes ModeKeys"},
    "smdebug.trials": {_TRIALS: "create_trial LocalTrial S3Trial", "stepwatch.rules.trial": "Trial"},
    "smdebug.trials.local_trial": {_TRIALS: "LocalTrial"},
    "smdebug.trials.s3_trial": {_TRIALS: "S3Trial"},
    "smdebug.trials.trial": {"stepwatch.rules.trial": "Trial"},
    "smdebug.trials.utils": {_TRIALS: "create_trial"},
    "smdebug.rules": {_RULES: "Rule invoke_rule RequiredTensors"},
    "smdebug.rules.rule": {_RULES: "Rule"},
    "smdebug.rules.rule_invoker": {_RULES: "invoke_rule"},
    "smdebug.rules.req_tensors": {_RULES: "RequiredTensors"},
    "smdebug.rules.action": {_ACTIONS: "Actions"},
    "smdebug.rules.action.action": {_ACTIONS: "Actions MessageAction StopTrainingAction ALLOWED_ACTIONS"},
    "smdebug.rules.action.message_action": {_ACTIONS: "MessageAction"},
    "smdebug.rules.action.stop_training_action": {_ACTIONS: "StopTrainingAction"},
    "smdebug.analysis": {},
    "smdebug.analysis.utils": {_HELPERS: "no_refresh refresh parse_bool parse_list_from_str"},
    "smdebug.core": {},
    "smdebug.core.modes": {"stepwatch.probe.mode_keys": "ModeKeys"},
    "smdebug.core.collection": {_COLLECTIONS: "Collection CollectionKeys"},
    "smdebug.core.collection_manager": {_COLLECTIONS: "CollectionManager"},
    "smdebug.core.save_config": {_SAVING: "SaveConfig SaveConfigMode"},
    "smdebug.core.reduction_config": {_SAVING: "ReductionConfig"},
    "smdebug.core.tensor": {"stepwatch.rules.trial": "StepState", "stepwatch.rules.tensor": "Tensor"},
    "smdebug.core.logger": {_HELPERS: "get_logger"},
    "smdebug.pytorch": {**_CONFIGURATION, _TRIALS: "create_trial"},
    "smdebug.pytorch.hook": {},
    "smdebug.pytorch.singleton_utils": {},
    "smdebug.pytorch.collection": {_COLLECTIONS: "Collection CollectionManager"},
}
"""Module of smdebug -> module of ours -> the names taken from there; ``*``: its public ones."""


LATER: dict[str, dict[str, str]] = {
    "smdebug.pytorch": {_HOOK: "Hook get_hook set_hook del_hook"},
    "smdebug.pytorch.hook": {_HOOK: "Hook"},
    "smdebug.pytorch.singleton_utils": {_HOOK: "get_hook set_hook del_hook"},
}
"""The same for names that are taken when they are first asked for, because they need torch."""


def attributes(module: str) -> dict[str, Any]:
    """The names of one of smdebug's modules."""
    found: dict[str, Any] = {"__version__": "1.0.34"} if module == "smdebug" else {}
    for source, names in MODULES[module].items():
        ours = importlib.import_module(source)
        public = [name for name in vars(ours) if not name.startswith("_")] if names == "*" else names.split()
        found.update({name: getattr(ours, name) for name in public})
    return found


def later_attribute(module: str, name: str) -> Any:
    """A name of one of smdebug's modules that is taken when it is first asked for.

    Raises:
        AttributeError: the module has no such name.
    """
    for source, names in LATER.get(module, {}).items():
        if name in names.split():
            return getattr(importlib.import_module(source), name)
    raise AttributeError(f"Stepwatch provides no {name} in {module}")
