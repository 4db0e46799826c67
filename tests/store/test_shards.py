"""Statistics of shards combine to those of the whole."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwatch.probe.statistics import measure
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.shards import combine

entries = st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, float("nan"), float("inf"), -float("inf")]))


@settings(max_examples=200, deadline=None)
@given(groups=st.lists(st.lists(st.lists(entries, max_size=9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_statistics_of_shards_combine_to_those_of_the_whole(groups: list[list[list[float]]]) -> None:
    shards = [torch.tensor(shard, dtype=torch.float32) for group in groups for shard in group]
    wholes = [torch.tensor([x for shard in group for x in shard], dtype=torch.float32) for group in groups]
    starts = np.cumsum([0, *(len(group) for group in groups[:-1])])
    found = combine(measure(shards).result(), starts)
    wanted = measure(wholes).result()
    scale = np.nan_to_num(wanted[:, STAT_COLUMNS.index("abs_max")])
    for column, name in enumerate(STAT_COLUMNS):
        if name in ("mean", "std"):
            close = np.abs(found[:, column] - wanted[:, column]) <= 2e-5 * scale
            assert (close | (np.isnan(found[:, column]) & np.isnan(wanted[:, column]))).all(), name
        else:
            np.testing.assert_allclose(found[:, column], wanted[:, column], rtol=1e-5, err_msg=name)
