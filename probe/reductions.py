"""What of a tensor is saved: statistics always, the whole tensor where asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALLOWED_REDUCTIONS = ("min", "max", "median", "mean", "std", "variance", "sum", "prod")
ALLOWED_NORMS = ("l1", "l2")


@dataclass(frozen=True)
class ReductionConfig:
    """smdebug's description of what to save of a tensor.

    The columns of ``stats`` are recorded in any case and hold the named reductions and norms (except
    median and product), so naming them changes nothing; ``save_raw_tensor`` adds the whole tensor.

    Raises:
        ValueError: an unknown reduction or norm.
    """

    reductions: Sequence[str] = ()
    abs_reductions: Sequence[str] = ()
    norms: Sequence[str] = ()
    abs_norms: Sequence[str] = ()
    save_raw_tensor: bool = False
    save_shape: bool = False

    def __post_init__(self) -> None:
        for kind, names, allowed in (
            ("reduction", (*self.reductions, *self.abs_reductions), ALLOWED_REDUCTIONS),
            ("norm", (*self.norms, *self.abs_norms), ALLOWED_NORMS),
        ):
            for name in names:
                if name not in allowed:
                    raise ValueError(f"{kind} {name!r} is unknown; expected one of {', '.join(allowed)}")
