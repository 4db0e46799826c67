"""The steps before a problem: what was measured of them although it was not due to be saved."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from stepwatch.probe.store.records import StepRecord

RECENT_STEPS = 256
RECENT_BYTES = 16 << 20


class RecentSteps:
    """Statistics of the last steps that were not saved; at most ``RECENT_STEPS`` of them and ``RECENT_BYTES``."""

    def __init__(self) -> None:
        self._kept: deque[StepRecord] = deque()
        self._bytes = 0

    def keep(self, record: StepRecord) -> None:
        """Take the statistics out of a record that is written without them."""
        if record.stats is None:
            return
        self._kept.append(replace(record, derived=[], values=[], scalars=[], timing={}, late=True))
        self._bytes += record.stats.nbytes
        record.names, record.stats = (), None
        while len(self._kept) > RECENT_STEPS or self._bytes > RECENT_BYTES:
            oldest = self._kept.popleft()
            assert oldest.stats is not None
            self._bytes -= oldest.stats.nbytes

    def release(self) -> list[StepRecord]:
        """All of them, to be written after the steps that they belong to."""
        released = list(self._kept)
        self._kept.clear()
        self._bytes = 0
        return released
