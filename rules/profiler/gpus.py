"""Which of a node's GPUs a job trains on."""

from __future__ import annotations

from stepwatch.rules.profiler.base import Sample
from stepwatch.rules.step import Step

_USED_BYTES = float(1 << 30)


class JobGpus:
    """Tells the job's GPUs from idle ones and from those that others use.

    That a job trains on GPUs at all is known from what PyTorch's allocator holds. Which they are: of one rank
    the driver says where its process has memory, unless a container hides its number; else every GPU counts on which
    somebody has more than 1 GiB.
    """

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._own: dict[str, float] = {}
        self._holding: set[int] = set()

    @property
    def ranks(self) -> int:
        """Ranks that have memory of a device."""
        return len(self._holding)

    def see_step(self, step: Step) -> None:
        """Take note of what the rank's allocator held."""
        reserved = step.timing.get("reserved_bytes")
        if reserved:
            self._holding.add(step.rank)
        elif reserved is not None:
            self._holding.discard(step.rank)

    def see_sample(self, sample: Sample) -> None:
        """Take note of what was in use on each device."""
        self._used.update(sample.of("memory_used_bytes"))
        self._own.update(sample.of("own_memory_bytes"))

    def __contains__(self, uuid: str) -> bool:
        if not self._holding:
            return False
        if len(self._holding) == 1 and any(self._own.values()):
            return self._own.get(uuid, 0.0) > 0
        return self._used.get(uuid, 0.0) > _USED_BYTES
