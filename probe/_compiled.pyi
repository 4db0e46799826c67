"""Statistics of tensors that are read where they lie; :mod:`.compiled` is how they are called."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

def set_up(
    plain_types: tuple[type, ...],
    strided: torch.layout,
    dtypes: tuple[torch.dtype, ...],
    is_wrapped: Callable[[torch.Tensor], bool],
    parallel: int,
) -> None: ...
def measure(tensors: Sequence[torch.Tensor], rows: int) -> tuple[int, list[int] | None]: ...
def silent_units(
    output: torch.Tensor, units: int, inner: int, silent_for: NDArray[np.int32], windows: NDArray[np.int32]
) -> tuple[int, int, int] | None: ...
def class_counts(
    logits: torch.Tensor, labels: int, rows: int, classes: int, ignored: int, counts: NDArray[np.int64]
) -> bool: ...
