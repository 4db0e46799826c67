"""Keeps pandas from being imported by commands that do not use it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not imported here", name=fullname)


@contextmanager
def without_pandas() -> Iterator[None]:
    """While it lasts, pandas cannot be imported, unless it is already.

    The first Python value that pyarrow turns into one of its own makes it import pandas, only to see whether the
    value is a frame; that takes half the time of a short command. Where pandas cannot be imported pyarrow goes on
    without, and looks for it again the next time.
    """
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
