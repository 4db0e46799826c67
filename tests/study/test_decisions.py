"""A trial is never given up that is better than its peers, whatever the curves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.rules.study.decisions import Curve, below_median, leads, not_promoted, ranking, stagnates
from stepwatch.rules.study.study import StudySettings

VALUES = st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf))


def curve(values: list[float], every: int = 10) -> Curve:
    made = Curve()
    for number, value in enumerate(values, 1):
        made.add(number * every, value)
    return made


curves = st.lists(st.lists(VALUES, min_size=1, max_size=8), min_size=2, max_size=9).map(
    lambda trials: {f"t{number}": curve(values) for number, values in enumerate(trials)}
)


@given(curves)
def test_nobody_is_given_up_who_is_as_good_as_the_others_by_the_same_step(trials: dict[str, Curve]) -> None:
    for name, mine in trials.items():
        others = [other.best_by(mine.steps[-1]) for other in trials.values() if other is not mine]
        better = sum(other < mine.best[-1] for other in others)
        for verdict in (below_median(name, trials, 1, 1), not_promoted(name, trials, first=10, reduction=2)):
            assert verdict is None or better > 0


@given(curves)
def test_most_are_never_given_up_at_once(trials: dict[str, Curve]) -> None:
    """Where all have come as far, those that are no worse than the median go on, and one of each few at a rung."""
    length = min(len(each.steps) for each in trials.values())
    cut = {name: Curve(each.steps[:length], each.best[:length], each.sums[:length]) for name, each in trials.items()}
    kept = [name for name in cut if below_median(name, cut, grace=1, peers=1) is None]
    ranked = sorted(each.best[-1] for each in cut.values())
    assert {name for name, each in cut.items() if each.best[-1] <= ranked[len(ranked) // 2 - 1]} <= set(kept)
    promoted = [name for name in cut if not_promoted(name, cut, first=10 * length, reduction=4) is None]
    assert len(promoted) >= math.ceil(len(cut) / 4)


@given(curves)
def test_one_leads(trials: dict[str, Curve]) -> None:
    assert leads(ranking(trials)[0], trials)
    for name in trials:
        if leads(name, trials):
            assert trials[name].best[-1] == trials[ranking(trials)[0]].best[-1]


@given(st.lists(VALUES, min_size=1, max_size=10), st.integers(1, 50))
def test_who_makes_progress_does_not_stagnate(values: list[float], patience: int) -> None:
    trials = {"t": curve([*values, -2e6])}
    assert stagnates("t", trials, patience) is None


def test_the_median_rule() -> None:
    trials = {f"t{n}": curve([1.0, 0.5, 0.4]) for n in range(5)}
    trials["bad"] = curve([1.0, 0.9])
    verdict = below_median("bad", trials, grace=20, peers=5)
    assert verdict is not None and (verdict.value, verdict.threshold) == (0.9, 0.75)
    assert verdict.why == "is behind the median of 5 others at step 20"
    assert below_median("bad", trials, grace=21, peers=5) is None
    assert below_median("bad", trials, grace=20, peers=6) is None
    trials["ahead"] = curve([1.0, 0.9, 0.9, 0.9, 0.8])
    verdict = below_median("ahead", trials, grace=20, peers=5)  # by what the others had reached at step 30
    assert verdict is not None and verdict.why == "is behind the median of 5 others at step 30"
    trials["late"] = curve([1.0, 0.9, 0.9, 0.9, 0.6])
    assert below_median("late", trials, grace=20, peers=5) is None  # it has come as far since
    trials["broken"] = curve([math.nan, math.nan])
    assert below_median("broken", trials, grace=20, peers=5) is not None


def test_successive_halving() -> None:
    trials = {f"t{n}": curve([n, n, n]) for n in range(4)}
    best, second = (not_promoted(name, trials, first=30, reduction=4) for name in ("t0", "t1"))
    assert best is None and second is not None
    assert (second.value, second.threshold) == (1, 0)
    assert second.why == "is not among the best 1 of 4 at the rung of step 30"
    trials["t3"].add(40, -1)
    assert not_promoted("t3", trials, first=30, reduction=4) is None  # it was not among them then, and is now
    trials["t3"] = curve([3, 3, 3])
    assert not_promoted("t3", trials, first=30, reduction=5) is None  # too few have come there
    assert not_promoted("t3", trials, first=15, reduction=2) is not None  # at the rung of step 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("median", "grace is missing; expected the steps before"),
        ("grace=0", "grace is 0; expected steps, 1 or more"),
        ("grace=soon", "grace is 'soon'; expected steps"),
        ("grace=10,peers=1", "peers is 1; expected a number of trials, 2 or more"),
        ("grace=10,halving=3", "halving is 3; expected true or false"),
        ("grace=10,asha", "'asha' is no part of a study; expected some of objective, grace"),
    ],
)
def test_settings_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudySettings.parse(text)


def test_the_median_rule_is_the_default() -> None:
    assert StudySettings.parse("grace=10") == StudySettings(10, median=True)
    assert StudySettings.parse("grace=10,patience=5,objective=acc:max") == StudySettings(10, "acc:max", patience=5)
