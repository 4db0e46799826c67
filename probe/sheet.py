"""Statistics of the tensors of one step, in one matrix that fills row by row."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from stepwatch.probe.compiled import measure_into, type_code
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
        code = type_code(tensor)
        if code is None:
            return False
        address, numel = tensor.data_ptr(), tensor.numel()
        if not address and numel:
            return False
        self._measure([name], array("q", (address, numel, code)))
        return True

    def add_all(self, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> list[int]:
        """Measure tensors together; the indices of those that have to be measured in another way."""
        described = array("q")
        added: list[str] = []
        left: list[int] = []
        for index, tensor in enumerate(tensors):
            code = type_code(tensor)
            if code is None:
                left.append(index)
                continue
            address, numel = tensor.data_ptr(), tensor.numel()
            if not address and numel:
                left.append(index)
                continue
            described.extend((address, numel, code))
            added.append(names[index])
        if added:
            self._measure(added, described)
        return left

    def matrix(self) -> NDArray[np.float64]:
        """float64 [len(names), len(STAT_COLUMNS)]."""
        return self._matrix[: len(self.names)]

    def clear(self) -> None:
        """Forget all rows."""
        self.names.clear()
        self.broken = 0

    def _measure(self, names: list[str], described: array[int]) -> None:
        used = len(self.names)
        if used + len(names) > len(self._matrix):
            filled = self.matrix()
            self._allocate(used + max(used, len(names)))
            self._matrix[:used] = filled
        self.broken += measure_into(self._address + used * _ROW_BYTES, described)
        self.names += names

    def _allocate(self, rows: int) -> None:
        self._matrix = np.empty((rows, len(STAT_COLUMNS)))
        self._address = self._matrix.ctypes.data
