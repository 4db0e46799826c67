"""Records and runs made through the real writer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.writer import TraceWriter

NAMES = ("Net_fc.weight", "gradient/Net_fc.weight")


def record(step: int, *, mode: str = "TRAIN", names: tuple[str, ...] = NAMES, seed: int = 0) -> StepRecord:
    values = np.random.default_rng((step, seed)).normal(size=(len(names), len(STAT_COLUMNS)))
    values[:, :4] = np.abs(values[:, :4] * 10).round()
    return StepRecord(
        step=step,
        mode=mode,
        mode_step=step,
        time_ns=time.time_ns(),
        names=names,
        stats=values if names else None,
        scalars=[("loss_output_0", float(step) + seed / 100)],
        timing={"duration_ns": 1000 + step},
        saved=bool(names),
    )


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    def run(steps: range, *, start: int = 0, seed: int = 0, every: int = 0, **options: object) -> Path:
        writer = TraceWriter(tmp_path / "run", **options)  # type: ignore[arg-type]
        for name in NAMES:
            writer.describe(TensorInfo(name, (2, 2), "float32", ("weights",)))
        writer.set_start_step(start)
        for step in steps:
            assert writer.submit(record(step, seed=seed))
            if every and step % every == 0:
                writer.flush()
        writer.close("finished", last_step=steps.stop)
        return tmp_path / "run"

    yield run
