"""Ray Tune: end a trial when a rule finds that it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune

from stepwatch.probe.hook import Hook
from stepwatch.probe.integrations.leaving import checked_directory, leaving


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
    with leaving(f"{checked_directory(out_dir)}/{name}", options) as hook:
        yield hook
