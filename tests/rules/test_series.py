"""What rules measure curves by."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.rules.series import RecentMedian, TrainingLoss, due, median
from stepwatch.rules.step import Step

NUMBERS = st.floats(allow_nan=False, min_value=-1e100, max_value=1e100) | st.just(float("inf"))


@given(st.lists(NUMBERS, min_size=1), st.integers(1, 8))
def test_the_median_of_the_latest_values_is_that_of_numpy(values: list[float], count: int) -> None:
    kept = RecentMedian(count)
    for at, value in enumerate(values):
        kept.add(value)
        kept.add(float("nan"))
        latest = values[max(0, at + 1 - count) : at + 1]
        assert len(kept) == len(latest)
        assert kept.median() == np.median(latest) == median(np.array(latest))


@given(st.lists(st.tuples(st.floats(0, 9), st.sets(st.integers(0, 3))), max_size=40))
def test_each_rule_has_the_losses_that_it_has_seen_however_many_share_them(
    seen: list[tuple[float, set[int]]],
) -> None:
    together, shared = [TrainingLoss() for _ in range(4)], {}
    for at, (value, observers) in enumerate(seen):
        step = Step(0, at, "TRAIN", at, 0, scalars={"loss": value}, shared=shared)
        assert [together[each].observe(step) for each in observers] == [value] * len(observers)
    for each, losses in enumerate(together):
        expected = [(at, value) for at, (value, observers) in enumerate(seen) if each in observers]
        assert list(zip(losses.steps, losses.values, strict=True)) == expected


def test_a_loss_that_many_rules_look_at_is_in_memory_once() -> None:
    together, shared = [TrainingLoss() for _ in range(9)], {}
    for at in range(5):
        step = Step(0, at, "TRAIN", at, 0, scalars={"loss": 1.0}, shared=shared)
        for losses in together:
            losses.observe(step)
    assert len({id(losses.values) for losses in together}) == 1


@pytest.mark.parametrize("every", [10, 50])
def test_looking_back_takes_time_in_proportion_to_the_length(every: int) -> None:
    assert [count for count in range(1, 6 * every) if due(count, every)] == [every * n for n in range(1, 6)]
    ends = [10_000, 100_000, 1_000_000]
    looked_at = np.cumsum([count if due(count, every) else 0 for count in range(1, ends[-1] + 1)])
    per_step = [looked_at[end - 1] / end for end in ends]
    assert max(per_step) <= 410, "values looked at per step, however long the run"
    every_look = [count for count in range(1, ends[-1]) if due(count, every)]
    late = [b - a for a, b in pairwise(every_look) if a > 200 * every and b - a > a / 100]
    assert late == [], "never more than a hundredth of the run between two looks"
