"""Reductions as ``smdebug.core.reductions`` computes and names them."""

from __future__ import annotations

import re
from typing import Any

from numpy.typing import NDArray

from stepwatch.probe.smdebug.errors import SMDebugValueError
from stepwatch.probe.store.smdebug.directory import reduction_name as saved_name
from stepwatch.probe.store.smdebug.directory import split_reduction
from stepwatch.rules.smdebug.core.constants import ALLOWED_NORMS, ALLOWED_REDUCTIONS
from stepwatch.rules.smdebug.trial import numpy_reduction


def get_numpy_reduction(reduction_name: str, numpy_data: NDArray[Any], abs: bool = False) -> Any:
    """NumPy's reduction or norm.

    Raises:
        SMDebugValueError: there is no such reduction.
    """
    if reduction_name not in (*ALLOWED_REDUCTIONS, *ALLOWED_NORMS):
        known = ", ".join((*ALLOWED_REDUCTIONS, *ALLOWED_NORMS))
        raise SMDebugValueError(f"reduction {reduction_name!r} is unknown; expected one of {known}")
    return numpy_reduction(numpy_data, reduction_name, abs)


def get_basic_numpy_reduction(reduction_name: str, numpy_data: NDArray[Any]) -> Any:
    """The same for reductions that are no norms; None for any other name."""
    return numpy_reduction(numpy_data, reduction_name, False) if reduction_name in ALLOWED_REDUCTIONS else None


def get_reduction_tensor_name(tensorname: str, reduction_name: str, abs: bool, remove_colon_index: bool = True) -> str:
    """Name under which a reduction is saved; without TensorFlow's ``:0``."""
    plain = re.sub(r":\d+", "", tensorname) if remove_colon_index else tensorname
    return saved_name(plain, reduction_name, abs)


def reverse_reduction_tensor_name(reduction_tensor_name: str) -> tuple[str, str, bool]:
    """Tensor, reduction, and whether it is of magnitudes."""
    return split_reduction(reduction_tensor_name)
