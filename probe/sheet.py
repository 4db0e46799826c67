"""Statistics of the tensors of one step, in one matrix that fills row by row."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from stepwatch.probe.compiled import measure_into
from stepwatch.probe.store.schema import STAT_COLUMNS

_ROW_BYTES = 8 * len(STAT_COLUMNS)


class StatisticsSheet:
    """Rows of ``stats`` for CPU tensors that compiled code reads where they lie: a row costs a microsecond or two.

    Attributes:
        names: the tensors in the order of the rows.
        broken: how many of them hold something that is not finite.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.broken = 0
        self._allocate(64)

    def add(self, name: str, tensor: torch.Tensor) -> bool:
        """Measure a tensor now; False where it has to be measured in another way."""
        used = len(self.names)
        if used == len(self._matrix):
            self._grow(used)
        broken, left = measure_into(self._address + used * _ROW_BYTES, (tensor,))
        if left:
            return False
        self.broken += broken
        self.names.append(name)
        return True

    def add_all(self, names: list[str], tensors: list[torch.Tensor]) -> list[int] | None:
        """Measure tensors now, together; the indices of those that have to be measured in another way, if any."""
        used = len(self.names)
        if used + len(names) > len(self._matrix):
            self._grow(max(used, len(names)))
        broken, left = measure_into(self._address + used * _ROW_BYTES, tensors)
        self.broken += broken
        if left:
            others = set(left)
            names = [name for index, name in enumerate(names) if index not in others]
        self.names += names
        return left

    def matrix(self) -> NDArray[np.float64]:
        """float64 [len(names), len(STAT_COLUMNS)]."""
        return self._matrix[: len(self.names)]

    def _grow(self, rows: int) -> None:
        filled = self.matrix()
        self._allocate(len(self._matrix) + rows)
        self._matrix[: len(filled)] = filled

    def _allocate(self, rows: int) -> None:
        self._matrix = np.empty((rows, len(STAT_COLUMNS)))
        self._address = self._matrix.ctypes.data
