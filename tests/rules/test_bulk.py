"""Whole tensors over all their steps at once, held against the same read step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.smdebug.importing import write_origin
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.trial import Trial, create_trial

Saved = list[tuple[int, str, int, dict[str, np.ndarray]]]
DTYPES = ("float32", "float64", "int64", "bool", "uint8", "float16")


def write(path: Path, saved: Saved, rank: int = 0, world_size: int = 1) -> None:
    writer = TraceWriter(path, rank=rank, run_info={"world_size": world_size})
    for number, (step, mode, mode_step, values) in enumerate(saved):
        record = StepRecord(step, mode, mode_step, number, tuple(values))
        record.saved = True
        record.stats = np.zeros((len(values), len(STAT_COLUMNS)))
        record.stats[:, 0] = [value.size for value in values.values()]
        record.values = list(values.items())
        record.scalars = [("loss", float(number)), ("MSELoss_output_0", -float(number))]
        writer.submit(record)
        if number % 3 == 0:
            writer.flush()
    writer.close("finished")


def job() -> Saved:
    """Training steps, with an evaluation of the same global step after every third; all kinds of shapes."""
    rng = np.random.default_rng(0)
    saved: Saved = []
    for step in range(10):
        values = {f"{kind}_w": rng.normal(size=(3, 2)).astype(kind) for kind in DTYPES}
        values["scalar"] = np.array(step, np.float32)
        values["ragged"] = np.arange(step % 3, dtype=np.int32)
        values["empty"] = np.empty((0, 4), np.float64)
        if step % 2:
            values["odd"] = np.full(5, step, np.uint8)
        saved.append((step, "TRAIN", step, values))
        if step % 3 == 2:
            saved.append((step, "EVAL", step // 3, {"float32_w": rng.normal(size=(3, 2)).astype("float32")}))
    return saved


def slowly(trial: Trial, name: str, mode: ModeKeys) -> dict[int, np.ndarray]:
    return {step: trial.tensor(name).value(step, mode) for step in trial.tensor(name).steps(mode)}


@pytest.mark.parametrize("of_smdebug", [False, True])
@pytest.mark.parametrize("range_steps", [None, (2, 7)])
def test_as_step_by_step(tmp_path: Path, of_smdebug: bool, range_steps: tuple[int, int] | None) -> None:
    write(tmp_path / "run", job())
    if of_smdebug:
        write_origin(tmp_path / "run", {"workers": None, "collections": {}})
    for mode in (ModeKeys.GLOBAL, ModeKeys.TRAIN, ModeKeys.EVAL):
        trial = create_trial(tmp_path / "run", range_steps=range_steps)
        arrays = trial.arrays(mode)
        assert set(arrays) == set(trial.tensor_names(mode=mode))
        for name, series in arrays.items():
            expected = slowly(trial, name, mode)
            assert series.steps.tolist() == list(expected)
            for found in (
                dict(zip(series.steps.tolist(), series.values, strict=True)),
                trial.tensor(name).values(mode),
            ):
                assert list(found) == list(expected)
                for step, value in expected.items():
                    np.testing.assert_array_equal(found[step], value)
        for name in arrays:
            for step, value in trial.tensor(name).values(mode).items():
                expected_value = trial.tensor(name).value(step, mode)
                assert isinstance(value, np.ndarray) and value.dtype == expected_value.dtype
                assert value.shape == expected_value.shape


def test_a_tensor_is_one_array(tmp_path: Path) -> None:
    write(tmp_path / "run", job())
    arrays = create_trial(tmp_path / "run").arrays()
    assert arrays["float32_w"].values.shape == (10, 3, 2) and arrays["float32_w"].values.dtype == np.float32
    assert arrays["odd"].steps.tolist() == [1, 3, 5, 7, 9] and arrays["odd"].steps.dtype == np.int64
    assert arrays["ragged"].values.dtype == object and arrays["ragged"].values[1].shape == (2,)
    assert "empty" not in arrays and arrays["ragged"].steps.tolist() == [1, 2, 4, 5, 7, 8]  # as in smdebug
    # Of a training step and the evaluation after it the training step answers, as everywhere.
    assert arrays["loss"].values.ravel().tolist()[:4] == [0, 1, 2, 4]


def test_of_several_ranks_the_first_that_has_it(tmp_path: Path) -> None:
    write(tmp_path / "run", job(), world_size=2)
    other = [(step, mode, number, {"theirs": np.full(2, step)}) for step, mode, number, _ in job()]
    write(tmp_path / "run", other, rank=1, world_size=2)
    trial = create_trial(tmp_path / "run")
    assert {"theirs", "float32_w"} <= set(trial.arrays())
    assert set(trial.arrays(worker="worker_1")) == {"theirs", "loss", "MSELoss_output_0"}


def test_of_nothing(tmp_path: Path) -> None:
    write(tmp_path / "run", [])
    assert create_trial(tmp_path / "run").arrays() == {}
