"""The phases that a step is made of, as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

WAITS = ("loader", "checkpoint", "copy")
"""What is told apart outside of the passes and the optimizer's step: waiting for a DataLoader, writing checkpoints,
copying batches to a device."""

PHASES = (*WAITS, "data", "forward", "backward", "optimizer", "other")
"""They add up to a step; ``data`` is what passes before the first forward pass beside :data:`WAITS`."""


def phases_of(times: Mapping[str, Any]) -> dict[str, Any]:
    """Time of each of :data:`PHASES`.

    Micro-batches after the first are waited for when the time before the first forward pass is over: that is no
    ``other`` work of the script.

    Args:
        times: numbers, arrays or columns of ``duration``, ``data`` (all that passes before the first forward pass) and
            the other phases but ``other``, in any unit, none missing.
    """
    waits = sum(times[name] for name in WAITS)
    computing = times["forward"] + times["backward"] + times["optimizer"]
    outside = np.minimum(np.maximum(times["data"], waits), np.maximum(times["duration"] - computing, 0))
    own = {"data": np.maximum(outside - waits, 0), "other": np.maximum(times["duration"] - outside - computing, 0)}
    return {name: own[name] if name in own else times[name] for name in PHASES}
