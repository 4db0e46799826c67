"""Which names smdebug's modules have here, and where they come from."""

from __future__ import annotations

import importlib
from typing import Any

_RULES = "stepwatch.rules.smdebug.rule"
_HELPERS = "stepwatch.rules.smdebug.helpers"
_EXCEPTIONS = "stepwatch.rules.smdebug.exceptions"
_CONFIGURATION = {
    "stepwatch.probe.mode_keys": "modes ModeKeys",
    "stepwatch.probe.schedule": "SaveConfig SaveConfigMode",
    "stepwatch.probe.reductions": "ReductionConfig",
    "stepwatch.probe.collections": "Collection CollectionKeys",
}

MODULES: dict[str, dict[str, str]] = {
    "smdebug": _CONFIGURATION,
    "smdebug.modes": {"stepwatch.probe.mode_keys": "modes ModeKeys"},
    "smdebug.exceptions": {_EXCEPTIONS: "*", "stepwatch.probe.mode_keys": "modes ModeKeys"},
    "smdebug.trials": {"stepwatch.rules.trial": "create_trial Trial"},
    "smdebug.trials.trial": {"stepwatch.rules.trial": "Trial"},
    "smdebug.trials.utils": {"stepwatch.rules.trial": "create_trial"},
    "smdebug.rules": {_RULES: "Rule invoke_rule RequiredTensors"},
    "smdebug.rules.rule": {_RULES: "Rule"},
    "smdebug.rules.rule_invoker": {_RULES: "invoke_rule"},
    "smdebug.rules.req_tensors": {_RULES: "RequiredTensors"},
    "smdebug.analysis": {},
    "smdebug.analysis.utils": {_HELPERS: "no_refresh refresh parse_bool parse_list_from_str"},
    "smdebug.core": {},
    "smdebug.core.modes": {"stepwatch.probe.mode_keys": "ModeKeys"},
    "smdebug.core.collection": {"stepwatch.probe.collections": "Collection CollectionKeys"},
    "smdebug.core.save_config": {"stepwatch.probe.schedule": "SaveConfig SaveConfigMode"},
    "smdebug.core.reduction_config": {"stepwatch.probe.reductions": "ReductionConfig"},
    "smdebug.core.tensor": {"stepwatch.rules.trial": "StepState", "stepwatch.rules.tensor": "Tensor"},
    "smdebug.core.logger": {_HELPERS: "get_logger"},
    "smdebug.pytorch": {**_CONFIGURATION, "stepwatch.rules.trial": "create_trial"},
}
"""Module of smdebug -> module of ours -> the names taken from there; ``*``: its public ones."""


def attributes(module: str) -> dict[str, Any]:
    """The names of one of smdebug's modules."""
    found: dict[str, Any] = {"__version__": "1.0.34"} if module == "smdebug" else {}
    for source, names in MODULES[module].items():
        ours = importlib.import_module(source)
        public = [name for name in vars(ours) if not name.startswith("_")] if names == "*" else names.split()
        found.update({name: getattr(ours, name) for name in public})
    return found
