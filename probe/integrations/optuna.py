"""Optuna: prune a trial when a rule finds that it is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna

from stepwatch.probe.hook import Hook


@contextmanager
def pruning(trial: optuna.trial.Trial, out_dir: str | os.PathLike[str], **options: Any) -> Iterator[Hook]:
    """A hook that prunes the trial when a rule asks to stop its job, and records why.

    The trial gets the user attributes ``stepwatch_run`` and, where it was pruned, ``stepwatch_reason``. Optuna's own
    pruners may be used beside: a ``TrialPruned`` that the body raises ends the run as stopped.

    Args:
        trial: the trial.
        out_dir: directory of its run, another for each trial.
        options: further arguments of :class:`stepwatch.probe.Hook`; ``rules`` is "recommended" and ``actions``
            ``["stop"]`` by default.

    Raises:
        optuna.TrialPruned: from ``optimizer.step()``, when the job is stopped.
    """

    def prune(reason: str) -> None:
        trial.set_user_attr("stepwatch_reason", reason)
        raise optuna.TrialPruned(reason)

    trial.set_user_attr("stepwatch_run", os.fspath(out_dir))
    with Hook(out_dir, **{"rules": "recommended", "actions": ["stop"], "stop": prune, **options}) as hook:
        try:
            yield hook
        except optuna.TrialPruned as pruned:
            hook.close("stopped", str(pruned))
            raise
