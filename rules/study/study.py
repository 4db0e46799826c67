"""A directory of trials, watched as one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.compare.objective import goal_of
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.step import is_loss
from stepwatch.rules.study.curves import Key, TrialCurves
from stepwatch.rules.study.decisions import Curve, Verdict, below_median, leads, not_promoted, ranking, stagnates

log = logging.getLogger("stepwatch")

RULE = "Unpromising"
_DEFAULT_PEERS = 5
_DEFAULT_REDUCTION = 4


@dataclass(frozen=True)
class StudySettings:
    """When a trial is given up.

    Attributes:
        grace: steps before which none is.
        objective: NAME, NAME:min or NAME:max; by default the evaluation loss, or the training loss.
        median: whether one is that is behind the median of the others.
        peers: how many others must have come as far for that.
        halving: whether only the best go on at each rung, from ``grace`` steps on.
        reduction: how many come to a rung for each that goes on.
        patience: steps without progress after which one is; 0: none is.
    """

    grace: int
    objective: str = ""
    median: bool = False
    peers: int = _DEFAULT_PEERS
    halving: bool = False
    reduction: int = _DEFAULT_REDUCTION
    patience: int = 0

    @classmethod
    def parse(cls, text: str) -> StudySettings:
        """From ``median,grace=100,objective=accuracy:max``.

        Raises:
            ValueError: it is not of that form.
        """
        table: dict[str, Any] = {}
        for part in text.split(","):
            key, _, value = (each.strip() for each in part.partition("="))
            if key not in KEYS:
                raise ValueError(f"{key!r} is no part of a study; expected some of {', '.join(KEYS)}")
            table[key] = int(value) if value.isdecimal() else value or True
        return cls.of(table)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> StudySettings:
        """From the ``study`` table of a policy.

        Raises:
            ValueError: a value that is none, "KEY ..." first.
        """
        for key, kind, expected in _KEYS:
            value = table.get(key)
            wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
            if value is not None and (wrong or (kind is int and value < _LOWEST.get(key, 1))):
                raise ValueError(f"{key} is {value!r}; expected {expected}")
        if "grace" not in table:
            raise ValueError("grace is missing; expected the steps before which no trial is given up")
        settings = cls(**table)
        if settings.median or settings.halving or settings.patience:
            return settings
        return cls(**{**table, "median": True})

    def describe(self) -> str:
        """In words."""
        ways = [
            *([f"behind the median of {self.peers} or more others"] if self.median else []),
            *([f"not among the best 1 of {self.reduction} at steps {self.rungs()}"] if self.halving else []),
            *([f"without progress for {self.patience} steps"] if self.patience else []),
        ]
        what = self.objective or "the evaluation or training loss"
        return f"trials are given up by {what}, after {self.grace} steps, where {' or '.join(ways)}"

    def rungs(self) -> str:
        """The first rungs."""
        return ", ".join(str(self.grace * self.reduction**power) for power in range(3)) + " ..."


_KEYS: tuple[tuple[str, type, str], ...] = (
    ("objective", str, "the name of a scalar, NAME:min or NAME:max"),
    ("grace", int, "steps, 1 or more"),
    ("median", bool, "true or false"),
    ("peers", int, "a number of trials, 2 or more"),
    ("halving", bool, "true or false"),
    ("reduction", int, "a whole number, 2 or more"),
    ("patience", int, "steps, 1 or more"),
)
_LOWEST = {"peers": 2, "reduction": 2}
KEYS = tuple(key for key, _, _ in _KEYS)


class Study:
    """Runs that share their parent directory are the trials of one study.

    Args:
        settings: when a trial is given up.
    """

    def __init__(self, settings: StudySettings) -> None:
        self.settings = settings
        self._name, self._goal = goal_of(settings.objective) if settings.objective else ("", "min")
        self._trials: dict[Path, dict[str, TrialCurves]] = {}
        self._looked_at: set[Path] = set()
        self._given_up: set[Path] = set()

    def look(self, trace: Trace, *, live: bool) -> list[Finding]:
        """Take up what is new of a trial, and say whether it is not worth going on with, once."""
        trials = self._known(trace.source.parent)
        seen = trials.setdefault(trace.source.name, self._trial(trace))
        news = seen.read(ended=not live)
        first = trace.source not in self._looked_at
        self._looked_at.add(trace.source)
        if not ((news or first) and live) or trace.source in self._given_up:
            return []
        curves = self._curves(trace.source.parent)
        verdict = self._judge(trace.source.name, curves)
        if verdict is None:
            return []
        self._given_up.add(trace.source)
        return [self._finding(trace, curves, verdict)]

    def _known(self, folder: Path) -> dict[str, TrialCurves]:
        """The trials in a folder, with what they had reached when the first of them was looked at."""
        if folder not in self._trials:
            trials = self._trials[folder] = {}
            for path in sorted(each.parent for each in folder.glob("*/run.json")):
                try:
                    trace = Trace(path)
                    trials[path.name] = self._trial(trace)
                    trials[path.name].read(ended=not trace.live())
                except (TraceError, OSError) as error:
                    log.warning("%s: left out of its study: %s", path, error)
        return self._trials[folder]

    def _trial(self, trace: Trace) -> TrialCurves:
        return TrialCurves(trace, self._is_objective, 1.0 if self._goal == "min" else -1.0)

    def _judge(self, trial: str, curves: Mapping[str, Curve]) -> Verdict | None:
        mine, settings = curves.get(trial), self.settings
        if mine is None or mine.steps[-1] < settings.grace or leads(trial, curves):
            return None
        verdicts = (
            below_median(trial, curves, settings.grace, settings.peers) if settings.median else None,
            not_promoted(trial, curves, settings.grace, settings.reduction) if settings.halving else None,
            stagnates(trial, curves, settings.patience) if settings.patience else None,
        )
        return next((verdict for verdict in verdicts if verdict is not None), None)

    def _is_objective(self, name: str) -> bool:
        return name == self._name if self._name else is_loss(name)

    def _curves(self, folder: Path) -> dict[str, Curve]:
        """Of the trials in a folder: of the same scalar, on held-out data where any has it."""
        trials = self._trials[folder]
        keys = {key for trial in trials.values() for key, curve in trial.curves.items() if curve.steps}
        chosen = choose(keys)
        return {name: trial.curves[chosen] for name, trial in trials.items() if chosen in trial.curves}

    def _finding(self, trace: Trace, curves: Mapping[str, Curve], verdict: Verdict) -> Finding:
        mine, leader = curves[trace.source.name], ranking(curves)[0]
        sign = 1.0 if self._goal == "min" else -1.0
        what = self._name or "loss"
        unit = 1.0 if verdict.in_steps else sign
        return Finding(
            rule=RULE,
            severity=Severity.INFO,
            first_step=mine.steps[-1],
            last_step=mine.steps[-1],
            tensors=(what,),
            value=unit * verdict.value,
            threshold=unit * verdict.threshold,
            message=f"the trial {verdict.why}: best {what} {sign * mine.best[-1]:.4g}, of {leader} "
            f"{sign * curves[leader].best[-1]:.4g}",
            suggestion="give its time to the others",
            evidence={"series": [what], "leader": leader},
            rank=next(iter(trace.ranks), 0),
        )


def choose(keys: set[Key]) -> Key | None:
    """The scalar that trials are compared by: one on held-out data where there is one, else the first by name."""
    return min(keys, key=lambda key: (not key[1], key[0]), default=None)
