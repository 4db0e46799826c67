"""Leaves a training that is to end, and goes on behind it: for frameworks in which a job ends by returning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepwatch.probe.hook import Hook


class _TrainingEnded(BaseException):
    """Leaves the training; no script catches it by mistake."""


@contextmanager
def leaving(run: str, options: dict[str, Any], behind: Callable[[str], object] = lambda reason: None) -> Iterator[Hook]:
    """A hook in whose block the training is left when a rule or ``stepwatch stop`` asks for it.

    The rest of the block is skipped then, and what follows goes on; the run has the status "stopped", and says why.

    Args:
        run: directory or URL of the run.
        options: further arguments of the hook; ``rules`` is "recommended" and ``actions`` ``["stop"]`` by default.
        behind: called with the reason once the training was left and the run is closed.
    """

    def end(reason: str) -> None:
        raise _TrainingEnded(reason)

    with Hook(run, **{"rules": "recommended", "actions": ["stop"], "stop": end, **options}) as hook:
        try:
            yield hook
        except _TrainingEnded as ended:
            hook.close("stopped", str(ended))
            behind(str(ended))


def checked_directory(out_dir: str) -> str:
    """The directory, without a slash at its end.

    Raises:
        ValueError: it is not absolute.
    """
    if "://" not in out_dir and not Path(out_dir).is_absolute():
        raise ValueError(f"out_dir is {out_dir!r}; expected an absolute path, each worker has a directory of its own")
    return out_dir.rstrip("/")
