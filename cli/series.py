"""Samples of a run's machines, by device and metric."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stepwatch.probe.store.follower import NodeCursor
from stepwatch.probe.store.reader import Trace

Series = dict[tuple[str, str, str], tuple[NDArray[np.int64], NDArray[np.float64]]]
"""(times in ns, values) by (node, device, metric)."""


def series_of(trace: Trace, metrics: Sequence[str]) -> Series:
    """Every series of these metrics; devices, and the metrics of each, in order of first appearance."""
    wanted = pa.array(list(metrics))
    parts: dict[tuple[str, str, str], list[tuple[NDArray[np.int64], NDArray[np.float64]]]] = {}
    for node in trace.nodes:
        for piece in NodeCursor(trace, node).read():
            rows = piece.combine_chunks()
            device, metric = rows["device"].chunk(0), rows["metric"].chunk(0)
            chosen = pc.is_in(metric.dictionary, wanted).to_numpy(zero_copy_only=False)[metric.indices.to_numpy()]
            names = metric.dictionary.to_pylist()
            codes = (device.indices.to_numpy() * len(names) + metric.indices.to_numpy())[chosen]
            if not len(codes):
                continue
            order = np.argsort(codes.astype(np.min_scalar_type(codes.max())), kind="stable")  # 16 bits: in one pass
            ordered = codes[order]
            times, values = (rows[name].to_numpy()[chosen][order] for name in ("time_ns", "value"))
            bounds = [0, *(np.flatnonzero(np.diff(ordered)) + 1), len(ordered)]
            devices = device.dictionary.to_pylist()
            for start, end in pairwise(bounds):
                place, number = divmod(int(ordered[start]), len(names))
                key = (node, devices[place], names[number])
                parts.setdefault(key, []).append((times[start:end], values[start:end]))
    places: dict[str, int] = {}
    for _, name, _ in parts:
        places.setdefault(name, len(places))
    return {
        key: (np.concatenate([times for times, _ in parts[key]]), np.concatenate([values for _, values in parts[key]]))
        for key in sorted(parts, key=lambda key: (key[0], places[key[1]]))
    }
