"""Ray Tune: end a trial when a rule finds that it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune

from stepwatch.probe.hook import Hook


class _TrialEnded(BaseException):
    """Leaves the training; no script catches it by mistake."""


@contextmanager
def pruning(out_dir: str, **options: Any) -> Iterator[Hook]:
    """A hook that ends the trial when a rule asks to stop its job; to be used in a trainable function.

    The rest of the block is skipped then, and the function goes on behind it, so that the trial ends as one that has
    finished, with what it has reported last; its run has the status "stopped", and says why. A trial that is stopped by
    a scheduler of Ray's ends as it would without.

    Args:
        out_dir: absolute path of a directory that all workers reach; the trial's run is made in it, under the trial's
            name.
        options: further arguments of :class:`stepwatch.probe.Hook`; ``rules`` is "recommended" and ``actions``
            ``["stop"]`` by default.

    Raises:
        ValueError: the path is not absolute (each worker of Ray's has a directory of its own), or this is no trial.
    """
    name = tune.get_context().get_trial_name()
    if not name:
        raise ValueError("this is no trial of Ray Tune; expected to be called in a trainable function")
    if "://" not in out_dir and not Path(out_dir).is_absolute():
        raise ValueError(f"out_dir is {out_dir!r}; expected an absolute path, each worker has a directory of its own")

    def end(reason: str) -> None:
        raise _TrialEnded(reason)

    run = f"{out_dir.rstrip('/')}/{name}"
    with Hook(run, **{"rules": "recommended", "actions": ["stop"], "stop": end, **options}) as hook:
        try:
            yield hook
        except _TrialEnded as ended:
            hook.close("stopped", str(ended))
