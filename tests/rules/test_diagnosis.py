"""Findings folded into stories."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stepwatch.rules.catalogue import RULE_SETS
from stepwatch.rules.diagnosis import CONSEQUENCES, diagnose
from stepwatch.rules.finding import Finding, Severity

RULES = sorted({*CONSEQUENCES, *(rule for effects in CONSEQUENCES.values() for rule in effects)})


def finding(rule: str, first: int, last: int, severity: Severity = Severity.ERROR, rank: int = 0) -> Finding:
    return Finding(
        rule=rule,
        severity=severity,
        first_step=first,
        last_step=last,
        tensors=(),
        value=1.0,
        threshold=1.0,
        message=f"{rule} at {first}",
        suggestion="",
        rank=rank,
    )


findings = st.lists(
    st.builds(
        lambda rule, first, length, severity, rank: finding(rule, first, first + length, severity, rank),
        st.sampled_from(RULES),
        st.integers(0, 50),
        st.integers(0, 50),
        st.sampled_from(list(Severity)),
        st.integers(0, 2),
    ),
    max_size=12,
)


@given(findings)
def test_every_finding_is_in_exactly_one_story(found: list[Finding]) -> None:
    stories = diagnose(found)
    told = [id(f) for story in stories for f in (story.cause, *story.consequences)]
    assert sorted(told) == sorted(map(id, found))


def test_findings_that_explain_each_other_in_a_circle_are_one_story() -> None:
    found = [finding("DivergingLoss", 0, 1), finding("ExplodingTensor", 1, 1), finding("OscillatingLoss", 1, 1)]
    (story,) = diagnose(found)
    assert {id(f) for f in (story.cause, *story.consequences)} == set(map(id, found))


def test_an_exploding_gradient_that_ended_in_nan_is_one_story() -> None:
    found = [
        finding("DivergingLoss", 24, 26),
        finding("OscillatingLoss", 22, 40, Severity.WARNING),
        finding("ExplodingTensor", 20, 23),
        finding("DeadRelu", 30, 60),
    ]
    (story,) = diagnose(found)
    assert story.cause.rule == "ExplodingTensor"
    assert story.explains == ["OscillatingLoss", "DivergingLoss", "DeadRelu"]


def test_the_mistake_in_the_loop_comes_before_what_it_does() -> None:
    (story,) = diagnose([finding("ExplodingTensor", 5, 9), finding("GradientsNotReset", 0, 20)])
    assert story.cause.rule == "GradientsNotReset"


def test_what_has_nothing_to_do_with_each_other_stays_apart_and_the_gravest_comes_first() -> None:
    stories = diagnose([finding("Overfit", 10, 20, Severity.WARNING), finding("ZeroLearningRate", 30, 80)])
    assert [story.cause.rule for story in stories] == ["ZeroLearningRate", "Overfit"]


def test_what_came_long_before_is_no_consequence() -> None:
    stories = diagnose([finding("StalledLoss", 0, 100), finding("DeadRelu", 500, 600)])
    assert len(stories) == 2


def test_the_same_on_every_rank_is_one_story() -> None:
    (story,) = diagnose([finding("ExplodingTensor", 7, 9, rank=rank) for rank in range(3)])
    assert story.cause.rank == 0 and story.explains == []


def test_the_table_names_rules_that_exist() -> None:
    assert set(RULES) <= {rule.__name__ for rules in RULE_SETS.values() for rule in rules}
