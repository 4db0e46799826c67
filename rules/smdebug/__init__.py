"""Lets rules and training scripts that were written for smdebug run unmodified: ``import smdebug...`` finds Stepwatch.

``stepwatch analyze --rules my_rules.py:MyRule`` does it by itself; a plain script calls :func:`install` before its
first ``import smdebug``. What is provided stands in :data:`stepwatch.rules.smdebug.modules.MODULES`.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
import types
from collections.abc import Sequence

from stepwatch.rules.smdebug.modules import MODULES, attributes, later_attribute

log = logging.getLogger("stepwatch")


def install() -> None:
    """Provide ``smdebug`` and its modules from now on; called again it does nothing.

    An installed smdebug is left aside, with a line in the log; one that was imported before stays.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if "smdebug" in sys.modules:
        log.warning("smdebug itself was imported already and stays in use: rules that subclass its Rule cannot be run")
        return
    if importlib.util.find_spec("smdebug") is not None:
        log.info("smdebug is installed; in this process Stepwatch takes its place")
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MODULES:
            return None
        is_package = any(name.startswith(f"{fullname}.") for name in MODULES)
        return importlib.machinery.ModuleSpec(fullname, self, origin="stepwatch", is_package=is_package)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__.update(attributes(module.__name__))
        module.__dict__["__getattr__"] = functools.partial(later_attribute, module.__name__)
        module.__doc__ = f"What Stepwatch provides of {module.__name__}."
