"""The hook of a training job and the store of what it records.

``from stepwatch.probe import Hook`` is the line for training scripts. Names are loaded when they are first
used, so that reading traces needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwatch.probe.collections import Collection, CollectionKeys
    from stepwatch.probe.hook import Hook
    from stepwatch.probe.mode_keys import ModeKeys, modes
    from stepwatch.probe.reductions import ReductionConfig
    from stepwatch.probe.schedule import SaveConfig, SaveConfigMode
    from stepwatch.probe.stopping import TrainingStopped

__all__ = [
    "Collection",
    "CollectionKeys",
    "Hook",
    "ModeKeys",
    "ReductionConfig",
    "SaveConfig",
    "SaveConfigMode",
    "TrainingStopped",
    "modes",
]

_HOMES = {
    "Collection": "collections",
    "CollectionKeys": "collections",
    "Hook": "hook",
    "ModeKeys": "mode_keys",
    "ReductionConfig": "reductions",
    "SaveConfig": "schedule",
    "SaveConfigMode": "schedule",
    "TrainingStopped": "stopping",
    "modes": "mode_keys",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise ImportError(f"{name} needs torch: pip install 'stepwatch[torch]'") from None
        raise
