"""A comparison of several runs with the first of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.compare.circumstances import Difference, differences
from stepwatch.rules.compare.curves import Curves, Parting
from stepwatch.rules.compare.exact import Exactness, FirstDifference, whole_tensors
from stepwatch.rules.compare.objective import Objective, Standing, Verdict, choose, judge, series_of, standing
from stepwatch.rules.finding import json_tree
from stepwatch.rules.replay import StepStream
from stepwatch.rules.step import Step


@dataclass
class Pair:
    """A run beside the baseline.

    Attributes:
        steps: steps that both recorded.
        saved_steps: of these, steps with statistics in both.
        identical: whether all that both recorded is the same bit for bit; None where they share nothing.
        first_difference: where it is not.
        partings: curves that part beyond noise, the earliest first, within a step in the order of a training step.
        verdict: which is better by the objective; None without one.
        notes: what could not be compared, and why.
    """

    baseline: str
    run: str
    steps: int = 0
    saved_steps: int = 0
    identical: bool | None = None
    first_difference: FirstDifference | None = None
    partings: list[Parting] = field(default_factory=list)
    verdict: Verdict | None = None
    notes: list[str] = field(default_factory=list)

    def layers(self) -> list[Parting]:
        """The first parting of each module, the earliest first."""
        first: dict[str, Parting] = {}
        for parting in self.partings:
            if parting.module is not None:
                first.setdefault(parting.module, parting)
        return list(first.values())


@dataclass
class Comparison:
    """Runs beside the first of them.

    Attributes:
        runs: their directories, the baseline first.
        differences: in what they differ as to how they were made.
        objective: by what they are judged; None where no loss was recorded in all of them.
        standings: by run, the best first; empty without an objective.
        pairs: each other run beside the baseline.
    """

    runs: list[str]
    differences: list[Difference]
    objective: Objective | None
    standings: list[Standing]
    pairs: list[Pair]

    def to_json(self) -> dict[str, Any]:
        """What ``compare --json`` prints; non-finite numbers become strings."""
        content: dict[str, Any] = json_tree(asdict(self))
        return content


def compare(traces: Sequence[Trace], objective: str | None = None) -> Comparison:
    """Hold runs against the first of them.

    Args:
        traces: two runs or more.
        objective: the scalar to judge by, as :func:`stepwatch.rules.compare.objective.choose` takes it.

    Raises:
        ValueError: fewer than two runs, or an objective that was not recorded in all of them.
    """
    if len(traces) < 2:
        raise ValueError(f"got {len(traces)} run; expected two or more to compare")
    scalars = [series_of(trace) for trace in traces]
    chosen = choose(objective, scalars)
    pairs = [compare_pair(traces[0], other) for other in traces[1:]]
    standings = []
    if chosen is not None:
        curves = [entry[chosen.name, chosen.mode] for entry in scalars]
        for pair, curve in zip(pairs, curves[1:], strict=True):
            pair.verdict = judge((pair.baseline, pair.run), curves[0], curve, chosen.goal)
        standings = [standing(str(t.source), curve, chosen.goal) for t, curve in zip(traces, curves, strict=True)]
        sign = 1 if chosen.goal == "min" else -1
        standings.sort(key=lambda each: sign * each.last if math.isfinite(each.last) else math.inf)
    return Comparison([str(trace.source) for trace in traces], differences(traces), chosen, standings, pairs)


def compare_pair(baseline: Trace, other: Trace) -> Pair:
    """Hold a run against a baseline, step by step.

    Memory: eight bytes per tensor and saved step that both have, twice, of the first rank of both.
    """
    pair = Pair(str(baseline.source), str(other.source))
    ranks = [rank for rank in baseline.ranks if rank in other.ranks]
    if not ranks:
        pair.notes.append("no rank was recorded in both")
    for rank in ranks:
        curves = Curves() if rank == ranks[0] else None
        infos = {**other.tensors(), **baseline.tensors()}
        first = Exactness(rank, infos, whole_tensors(baseline, rank), whole_tensors(other, rank))
        for one, two in _aligned(baseline, other, rank):
            pair.steps += 1
            pair.saved_steps += one.stats is not None and two.stats is not None
            first.see(one, two)
            if curves is not None:
                curves.see(one, two)
        found = first.found
        if found and (pair.first_difference is None or found.step < pair.first_difference.step):
            pair.first_difference = found
        if curves is not None:
            pair.partings = curves.partings(infos)
            pair.notes += curves.notes
    if pair.steps:
        pair.identical = pair.first_difference is None
    else:
        pair.notes.append("no step was recorded in both")
    return pair


def _aligned(baseline: Trace, other: Trace, rank: int) -> Iterator[tuple[Step, Step]]:
    """Steps of both runs that have the same step, mode and count within the mode, in the baseline's order."""
    theirs = _by_step(other, rank)
    there = next(theirs, None)
    for number, steps in _by_step(baseline, rank):
        while there is not None and there[0] < number:
            there = next(theirs, None)
        if there is not None and there[0] == number:
            known = {(step.mode, step.mode_step): step for step in there[1]}
            yield from ((step, known[key]) for step in steps if (key := (step.mode, step.mode_step)) in known)


def _by_step(trace: Trace, rank: int) -> Iterator[tuple[int, list[Step]]]:
    stream = StepStream(trace, rank)
    steps = itertools.chain(stream.poll(), () if trace.live() else stream.drain())
    return ((number, list(group)) for number, group in itertools.groupby(steps, key=lambda step: step.step))
