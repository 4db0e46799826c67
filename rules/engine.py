"""Feeds steps and samples to rules and keeps their verdicts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.finding import Coverage, Finding, RuleResult, Status
from stepwatch.rules.profiler.base import Layout, ProfilerRule, Sample, Thinned
from stepwatch.rules.rule import Rule
from stepwatch.rules.scope import TensorFilter
from stepwatch.rules.step import Step

log = logging.getLogger("stepwatch")


@dataclass(slots=True)
class _Evaluation:
    """One rule over one rank, or over the whole run.

    Attributes:
        simple: whether it sees every step as it is.
    """

    spec: RuleSpec
    rule: Rule
    findings: list[Finding] = field(default_factory=list)
    error: str = ""
    narrowed: TensorFilter | None = field(init=False)
    simple: bool = field(init=False)

    def __post_init__(self) -> None:
        self.narrowed = TensorFilter(self.spec.tensors) if self.spec.tensors else None
        self.simple = self.spec.start_step <= 0 and self.spec.end_step is None and self.narrowed is None

    @property
    def state(self) -> tuple[Any, ...]:
        return self.rule, self.findings, self.error, self.narrowed

    def go_on_from(self, state: tuple[Any, ...]) -> None:
        self.rule, self.findings, self.error, self.narrowed = state


_Taker = tuple[ProfilerRule, _Evaluation, Thinned | None]


class Engine:
    """Judges steps as they come, each rank by rules of its own; rules about the job's cost see the whole run.

    What is found depends only on the steps of a rank and their order, not on how they arrive. A rule that
    raises is left out from then on and ends with status Error; the others go on.

    Args:
        specs: the rules.

    Attributes:
        feeds: whether there are rules that :meth:`feed` shows steps to.
        profiles: whether there are rules that :meth:`watch` feeds.
        waits: whether there are rules that judge how long nothing has come.
    """

    def __init__(self, specs: Sequence[RuleSpec]) -> None:
        self._specs = list(specs)
        self._of_a_rank = [
            spec for spec in specs if not (issubclass(spec.rule, ProfilerRule) or spec.rule.compares_ranks)
        ]
        self._ranks: dict[int, list[_Evaluation]] = {}
        self._shared: dict[int, dict[str, Any]] = {}
        self._whole = [_Evaluation(spec, spec.build()) for spec in specs if issubclass(spec.rule, ProfilerRule)]
        self._between = [_Evaluation(spec, spec.build()) for spec in specs if spec.rule.compares_ranks]
        self.feeds = bool(self._of_a_rank or self._between)
        self.profiles = bool(self._whole)
        self.waits = any(spec.rule.waited is not Rule.waited for spec in self._of_a_rank)
        self._takers: dict[Layout, list[_Taker]] = {}

    def feed(self, step: Step) -> list[Finding]:
        """Show a rank's step to every rule about a rank; returns what they found in it."""
        step.shared = self._shared.setdefault(step.rank, {})
        return _show(step, (*self._of_rank(step.rank), *self._between))

    def waited(self, rank: int, now_ns: int) -> list[Finding]:
        """The rank has recorded nothing more by this time; returns what is found in that."""
        found: list[Finding] = []
        for evaluation in self._of_rank(rank):
            if not evaluation.error:
                found += _ask(evaluation, evaluation.rule.waited, now_ns)
        return found

    def watch(self, event: Step | Sample) -> list[Finding]:
        """Show a step of any rank, or a sample, to every rule about the run; they come in the order of time."""
        if not isinstance(event, Sample):
            return _show(event, self._whole)
        found: list[Finding] = []
        node, now = event.node, event.seconds
        for rule, evaluation, moments in self._takers_of(event.layout):
            if not (evaluation.error or (moments is not None and moments.pauses(node, now))):
                found += _ask(evaluation, rule.sample, event)
        return found

    def _takers_of(self, layout: Layout) -> list[_Taker]:
        takers = self._takers.get(layout)
        if takers is None:
            rules = [(each.rule, each) for each in self._whole if isinstance(each.rule, ProfilerRule)]
            takers = self._takers[layout] = [
                (rule, each, rule.pausing(layout)) for rule, each in rules if rule.takes(layout)
            ]
        return takers

    def conclude(self, rank: int) -> list[Finding]:
        """The rank's run is over; returns what could be said only now."""
        return self._conclude(self._of_rank(rank))

    def conclude_run(self) -> list[Finding]:
        """All ranks are over; returns what rules about the run could say only now."""
        return self._conclude([*self._whole, *self._between])

    def restart(self, rank: int) -> None:
        """Forget a rank: a new attempt has replaced steps that were judged."""
        self._ranks.pop(rank, None)
        self._shared.pop(rank, None)
        for evaluation in self._between:
            evaluation.rule.forget(rank)
            evaluation.findings = [finding for finding in evaluation.findings if finding.rank != rank]

    def state(self) -> dict[str, Any]:
        """What the rules know, for :meth:`go_on_from` of an engine with the same rules."""
        return {
            "ranks": {rank: [each.state for each in evaluations] for rank, evaluations in self._ranks.items()},
            "whole": [each.state for each in self._whole],
            "between": [each.state for each in self._between],
        }

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Know what the rules of another engine knew."""
        self._ranks = {rank: self._fresh() for rank in state["ranks"]}
        evaluations = [each for rank in self._ranks.values() for each in rank]
        states = [each for rank in state["ranks"].values() for each in rank]
        for evaluation, known in zip(
            [*evaluations, *self._whole, *self._between], [*states, *state["whole"], *state["between"]], strict=True
        ):
            evaluation.go_on_from(known)

    def findings(self) -> list[Finding]:
        """All findings so far, by the step at which they were decided."""
        evaluations = [*(e for rank in self._ranks.values() for e in rank), *self._whole, *self._between]
        every = [finding for evaluation in evaluations for finding in evaluation.findings]
        return sorted(every, key=lambda finding: (finding.last_step, finding.rank))

    def results(self, *, live: bool) -> list[RuleResult]:
        """The verdict of each rule over all ranks.

        Args:
            live: whether more steps may come; then a rule that has not fired is in progress.
        """
        ranks = [self._ranks[rank] for rank in sorted(self._ranks)] or [self._fresh()]
        columns = {id(spec): [rank[i] for rank in ranks] for i, spec in enumerate(self._of_a_rank)}
        shared = {id(evaluation.spec): [evaluation] for evaluation in (*self._whole, *self._between)}
        return [_verdict(spec.name, columns.get(id(spec)) or shared[id(spec)], live) for spec in self._specs]

    def _of_rank(self, rank: int) -> list[_Evaluation]:
        evaluations = self._ranks.get(rank)
        if evaluations is None:
            evaluations = self._ranks[rank] = self._fresh()
        return evaluations

    def _fresh(self) -> list[_Evaluation]:
        return [_Evaluation(spec, spec.build()) for spec in self._of_a_rank]

    def _conclude(self, evaluations: Sequence[_Evaluation]) -> list[Finding]:
        found: list[Finding] = []
        for evaluation in evaluations:
            if not evaluation.error:
                found += _ask(evaluation, evaluation.rule.conclude)
        return found


def _show(step: Step, evaluations: Iterable[_Evaluation]) -> list[Finding]:
    """Show a step to rules; written for speed, since nearly always none of them has anything to say."""
    found: list[Finding] = []
    for evaluation in evaluations:
        if evaluation.error:
            continue
        shown = step
        try:
            if not evaluation.simple:
                if not evaluation.spec.judges(step.step):
                    continue
                shown = step if evaluation.narrowed is None else evaluation.narrowed(step)
            answer = evaluation.rule.observe(shown)
            said = answer if answer.__class__ is tuple else tuple(answer or ())
        except Exception as error:
            _fail(evaluation, error)
            continue
        if said:
            found += _take(evaluation, said)
    return found


def _ask(
    evaluation: _Evaluation, question: Callable[..., Iterable[Finding] | None], *about: object
) -> Sequence[Finding]:
    try:
        answer = question(*about)
        said = tuple(answer) if answer else ()
    except Exception as error:
        _fail(evaluation, error)
        return ()
    return _take(evaluation, said) if said else ()


def _fail(evaluation: _Evaluation, error: Exception) -> None:
    """The rule is left out from now on."""
    evaluation.error = f"{type(error).__name__}: {error}"
    log.warning("rule %s failed: %s", evaluation.rule.name, evaluation.error, exc_info=error)


def _take(evaluation: _Evaluation, said: Iterable[Finding]) -> list[Finding]:
    spec = evaluation.spec
    found = [replace(each, docs=spec.docs, severity=spec.severity or each.severity) for each in said]
    evaluation.findings += found
    return found


def _verdict(name: str, evaluations: list[_Evaluation], live: bool) -> RuleResult:
    findings = [finding for evaluation in evaluations for finding in evaluation.findings]
    errors = [evaluation.error for evaluation in evaluations if evaluation.error]
    coverages = [evaluation.rule.coverage() for evaluation in evaluations if not evaluation.error]
    coverage = _join(coverages)
    if findings:
        status = Status.ISSUES_FOUND
    elif errors:
        status = Status.ERROR
    elif live:
        status = Status.IN_PROGRESS
    else:
        status = Status.NO_ISSUES_FOUND if coverage.decided else Status.STOPPED
    return RuleResult(name, status, findings, coverage, errors[0] if errors else "")


def _join(coverages: list[Coverage]) -> Coverage:
    """What all ranks looked at; decided where every one could."""
    if not coverages:
        return Coverage()
    firsts = [c.first_step for c in coverages if c.first_step is not None]
    lasts = [c.last_step for c in coverages if c.last_step is not None]
    nearest = max(coverages, key=lambda c: -1.0 if c.margin is None else c.margin)
    return Coverage(
        decided=all(c.decided for c in coverages),
        steps=max(c.steps for c in coverages),
        first_step=min(firsts, default=None),
        last_step=max(lasts, default=None),
        tensors=max(c.tensors for c in coverages),
        missing=tuple(dict.fromkeys(reason for c in coverages for reason in c.missing)),
        margin=nearest.margin,
        closest=nearest.closest,
    )
