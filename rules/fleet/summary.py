"""What many runs have in common: problems, and the time that went by after them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from stepwatch.rules.fleet.judged import Judged, Place


@dataclass(frozen=True)
class Problem:
    """A rule that found something in several runs.

    Attributes:
        rule: its name.
        runs: where, in the order in which they were judged.
        first_step: the median of the steps at which it first began in a run.
    """

    rule: str
    runs: list[Place]
    first_step: float


@dataclass(frozen=True)
class Group:
    """Runs that have a user, a model or a tag in common.

    Attributes:
        name: what they have in common, "" for those of which it is not known.
        runs, with_issues: how many there are, and how many of them have findings.
        hours, lost_hours: sums of the runs' ``seconds`` and ``lost_seconds``.
    """

    name: str
    runs: int = 0
    with_issues: int = 0
    hours: float = 0.0
    lost_hours: float = 0.0


@dataclass
class Summary:
    """What many runs have in common.

    Attributes:
        runs: number of runs, those that could not be judged included.
        with_issues, undecided, failed: how many had findings, had none and were not decided by any rule, could not
            be judged.
        problems: by how many runs have them.
        hours, lost_hours, wasted_hours: sums of the runs' ``seconds``, ``lost_seconds`` and ``wasted_seconds``.
    """

    runs: int = 0
    with_issues: int = 0
    undecided: int = 0
    failed: int = 0
    problems: list[Problem] = field(default_factory=list)
    hours: float = 0.0
    lost_hours: float = 0.0
    wasted_hours: float = 0.0


def summarise(judged: Iterable[Judged]) -> Summary:
    """What the runs have in common."""
    summary = Summary()
    found: dict[str, dict[Place, int]] = {}
    for each in judged:
        summary.runs += 1
        summary.hours += each.seconds / 3600
        summary.lost_hours += each.lost_seconds / 3600
        summary.wasted_hours += each.wasted_seconds / 3600
        if each.analysis is None:
            summary.failed += 1
        elif each.analysis.findings:
            summary.with_issues += 1
            for finding in each.analysis.findings:
                steps = found.setdefault(finding.rule, {})
                steps[each.run] = min(finding.first_step, steps.get(each.run, finding.first_step))
        elif not any(result.coverage.decided for result in each.analysis.results):
            summary.undecided += 1
    problems = [Problem(rule, list(steps), float(np.median(list(steps.values())))) for rule, steps in found.items()]
    summary.problems = sorted(problems, key=lambda problem: (-len(problem.runs), problem.rule))
    return summary


def group(judged: Iterable[Judged], key: str) -> list[Group]:
    """Runs by what they have in common, those that lost the most time first; runs that could not be judged left out.

    Args:
        judged: the runs.
        key: "user", "model", "tag" (a run counts under each of its tags), or the KEY of tags KEY=VALUE.
    """
    groups: dict[str, Group] = {}
    for each in judged:
        if each.analysis is None:
            continue
        for name in _names(each, key) or [""]:
            known = groups.get(name, Group(name))
            groups[name] = Group(
                name,
                known.runs + 1,
                known.with_issues + bool(each.analysis.findings),
                known.hours + each.seconds / 3600,
                known.lost_hours + each.lost_seconds / 3600,
            )
    return sorted(groups.values(), key=lambda each: (-each.lost_hours, -each.runs, each.name))


def _names(judged: Judged, key: str) -> list[str]:
    if key in ("user", "model"):
        return [judged.user if key == "user" else judged.model]
    if key == "tag":
        return list(judged.tags)
    return [value for tag in judged.tags if (value := tag.removeprefix(f"{key}=")) != tag]
