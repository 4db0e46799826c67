"""What rules measure curves by."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.rules.recommended.series import RecentMedian, due, median

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
