"""Which rows count when a job was resumed: those of the latest attempt to reach a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Attempts:
    """The attempts of one rank.

    A row of an attempt is superseded when a later attempt began at its step or before. Evaluations at
    exactly the step where the later one began were made before the checkpoint it resumed from, and stay;
    unless it began at 0, which is a fresh start.

    Args:
        entries: ``attempts`` of the rank's file.
    """

    def __init__(self, entries: Sequence[dict[str, Any]]) -> None:
        self.entries = list(entries)
        starts = [entry.get("start_step") for entry in self.entries]
        self._cuts: list[int | None] = []
        cut: int | None = None
        for start in reversed(starts):
            self._cuts.insert(0, cut)
            if isinstance(start, int):
                cut = start if cut is None else min(cut, start)

    def cut(self, attempt: int) -> int | None:
        """Step from which rows of this attempt are superseded, or None."""
        return self._cuts[attempt] if attempt < len(self._cuts) else None

    def deciding(self, step: int) -> int:
        """The attempt that recorded this step last; a finding decided at it belongs to that attempt."""
        for attempt in range(len(self.entries) - 1, -1, -1):
            start = self.entries[attempt].get("start_step")
            if isinstance(start, int) and start <= step:
                return attempt
        return 0

    def drop_superseded(self, rows: pa.Table, attempt: int) -> pa.Table:
        """Rows of one attempt's part that count; needs the columns ``step`` and ``mode``."""
        cut = self.cut(attempt)
        if cut is None or not rows.num_rows:
            return rows
        step = rows["step"].to_numpy()
        keep = step < cut
        if cut > 0 and np.any(step == cut):
            training = pc.is_in(rows["mode"], pa.array(["TRAIN", "GLOBAL"])).to_numpy(zero_copy_only=False)
            keep |= (step == cut) & ~training
        return rows if keep.all() else rows.filter(pa.array(keep))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attempts) and self._cuts == other._cuts
