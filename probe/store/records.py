"""What passes between the hook, the writer and the in-process rules: plain data, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a recorded tensor beside its values.

    Attributes:
        name: smdebug's name of it, e.g. ``gradient/Net_fc.weight`` or ``relu1_output_0``.
        shape: its shape when first seen; a batch dimension may differ later.
        dtype: its dtype as torch prints it without the prefix, e.g. ``"bfloat16"``.
        collections: names of the collections it belongs to.
        module: dotted path of its module, "" for the root, None where there is none.
        module_type: class name of that module, e.g. ``"ReLU"``.
        order: position in execution order when first seen, so that layers can be shown by depth.
        shards: ranks that each record a part of it; empty where a rank records the whole. ``shape`` is that of
            the whole in either case.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    collections: tuple[str, ...] = ()
    module: str | None = None
    module_type: str | None = None
    order: int = 0
    shards: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The entry of tensors.json; the name is its key there."""
        entry = asdict(self)
        del entry["name"]
        return entry

    @classmethod
    def from_json(cls, name: str, entry: dict[str, Any]) -> TensorInfo:
        """Inverse of :meth:`to_json`; unknown keys of a newer writer are ignored."""
        return cls(
            name=name,
            shape=tuple(entry.get("shape", ())),
            dtype=entry.get("dtype", ""),
            collections=tuple(entry.get("collections", ())),
            module=entry.get("module"),
            module_type=entry.get("module_type"),
            order=int(entry.get("order", 0)),
            shards=tuple(entry.get("shards", ())),
        )


@dataclass(slots=True)
class StepRecord:
    """Everything recorded at one step (an optimizer step, or one forward pass outside training).

    Attributes:
        step: global step, the number of optimizer steps done before it.
        mode: name of the mode, e.g. ``"TRAIN"``.
        mode_step: count of such steps within the mode.
        time_ns: wall clock at its start, nanoseconds since the epoch.
        names: tensors whose statistics are in ``stats``; the same tuple object at every step where the
            same tensors are saved, so that readers can recognise it by identity.
        stats: float64 [len(names), len(STAT_COLUMNS)], or None where nothing was saved.
        derived: (tensor, quantity, float64 vector) triples.
        values: (tensor, array) pairs of whole tensors.
        scalars: (name, value) pairs in the order in which they were logged.
        timing: nanoseconds by column of the ``steps`` table; absent ones are null.
        saved: whether this step was due to be saved; what was measured of another one is kept back for a while.
        alarmed: whether what was kept back of the steps before it is to be written now.
        late: whether these are statistics that were kept back, of a step that is written already.
        resolve: called once by the writer's thread before the record is read: waits for results still
            on their way from a device and fills in ``stats``, ``derived`` and ``scalars``.
    """

    step: int
    mode: str
    mode_step: int
    time_ns: int
    names: tuple[str, ...] = ()
    stats: NDArray[np.float64] | None = None
    derived: list[tuple[str, str, NDArray[np.float64]]] = field(default_factory=list)
    values: list[tuple[str, NDArray[Any]]] = field(default_factory=list)
    scalars: list[tuple[str, float]] = field(default_factory=list)
    timing: dict[str, int] = field(default_factory=dict)
    saved: bool = False
    alarmed: bool = False
    late: bool = False
    resolve: Callable[[StepRecord], None] | None = None
