"""Modes of a training job, under the names and numbers that SageMaker Debugger gave them."""

from __future__ import annotations

import enum


class ModeKeys(enum.Enum):
    """What the job is doing while something is recorded.

    The numbers are those of smdebug's traces. GLOBAL stands for a job that never says what it does;
    in a query it means "all modes".
    """

    TRAIN = 1
    EVAL = 2
    PREDICT = 3
    GLOBAL = 4

    __hash__ = object.__hash__  # the enumeration's own runs in Python, several times a step


modes = ModeKeys


TRAINING = (ModeKeys.TRAIN, ModeKeys.GLOBAL)
"""Modes in which the job learns."""
