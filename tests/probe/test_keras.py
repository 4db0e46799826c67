"""The adapter to Keras 3, with the real library on short real runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when it is first imported

from stepwatch.probe import SaveConfig
from stepwatch.probe.store.control import read_acknowledgement
from stepwatch.probe.store.reader import Trace

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.usefixtures("one_thread")

BATCHES, BATCH = 10, 16


def network() -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((6, 6, 1)),
            layers.Conv2D(3, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(),
            layers.Dense(4, activation="tanh", name="hidden"),
            layers.Dense(2, name="head"),
        ]
    )


def fit(run: Path, optimizer: Any, model: Any = None, callbacks: tuple[Any, ...] = (), **options: Any) -> Any:
    from stepwatch.probe.integrations.keras import StepwatchCallback

    x = np.random.default_rng(0).standard_normal((BATCHES * BATCH, 6, 6, 1)).astype("float32")
    y = (x.sum((1, 2, 3)) > 0).astype("int64")
    model = model or network()
    if optimizer is not None:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    epochs = options.pop("epochs", 2)
    recorder = StepwatchCallback(run, save_config=SaveConfig(save_interval=1), system_interval=0, **options)
    validation = (x[:BATCH], y[:BATCH])
    model.fit(
        x, y, batch_size=BATCH, epochs=epochs, validation_data=validation, callbacks=[recorder, *callbacks], verbose=0
    )
    assert recorder.hook is None
    return model


def steps_of(trace: Trace, mode: str) -> dict[str, list[int]]:
    rows = trace.table("scalars", modes=[mode]).to_pandas()
    return {str(name): group["step"].tolist() for name, group in rows.groupby("name")}


def test_a_fit_is_recorded_by_layers_and_updates(tmp_path: Path) -> None:
    model = fit(tmp_path / "run", keras.optimizers.Adam(0.01, clipnorm=0.01))
    trace = Trace(tmp_path / "run")
    assert trace.status() == "finished" and not trace.counters.get("hook_errors")
    training, evaluation = steps_of(trace, "TRAIN"), steps_of(trace, "EVAL")
    assert training["KerasLoss_output_0"] == list(range(2 * BATCHES)) and training["accuracy"] == [9, 19]
    assert evaluation["KerasLoss_output_0"] == evaluation["val_accuracy"] == [10, 20]
    tensors = trace.tensors()
    assert tensors["Sequential_conv.kernel"].collections == ("weights",)
    assert tensors["Sequential_norm.beta"].collections == ("biases",)
    assert tensors["conv.activation_output_0"].shape == (BATCH, 3, 4, 4), "channels where PyTorch has them"
    assert tensors["hidden.activation_output_0"].module_type == "Tanh"
    stats = trace.table("stats", modes=["TRAIN"]).to_pandas()
    gradient = stats[stats["name"] == "gradient/Sequential_hidden.kernel"]
    assert len(gradient) == 2 * BATCHES and gradient["l2"].max() <= 0.0101, "clipped, as the optimizer uses them"
    units = trace.table("derived").to_pandas().query("quantity == 'unit_activity'")
    assert set(units["name"]) == {"conv.activation_output_0"} and {row[0] for row in units["value"]} == {3.0}
    assert "_backend_update_step" not in vars(model.optimizer) and "compute_loss" not in vars(model)


def test_a_step_is_an_update_where_gradients_are_accumulated(tmp_path: Path) -> None:
    model = fit(tmp_path / "run", keras.optimizers.SGD(0.01, gradient_accumulation_steps=5))
    assert steps_of(Trace(tmp_path / "run"), "TRAIN")["learning_rate"] == [0, 1, 2, 3]
    fit(tmp_path / "run", None, model, epochs=1)
    assert [entry["start_step"] for entry in Trace(tmp_path / "run").attempts(0).entries] == [0, 4]


def test_a_lost_model_is_saved_and_its_fit_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = fit(run, keras.optimizers.SGD(1e18), epochs=1000, rules="recommended", actions=["stop"])
    assert Trace(run).status() == "stopped" and int(model.optimizer.iterations) < 1000 * BATCHES
    answer = read_acknowledgement(run, 0)
    assert answer is not None and answer.checkpoint is not None
    saved = keras.saving.load_model(answer.checkpoint)
    assert int(saved.optimizer.iterations) == int(model.optimizer.iterations)


class FullDisk(keras.losses.Loss):  # type: ignore[misc, name-defined]
    def call(self, y_true: Any, y_pred: Any) -> Any:
        if y_pred.is_meta:  # Keras finds out shapes
            return y_pred
        raise RuntimeError("the disk is full")


def test_a_fit_that_fails_says_why_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = network()
    model.compile(optimizer="sgd", loss=FullDisk())
    with pytest.raises(RuntimeError, match="the disk is full"):
        fit(tmp_path / "run", None, model)
    end = Trace(tmp_path / "run").end(0)
    assert end is not None and (end.status, end.reason) == ("exception", "RuntimeError: the disk is full")
    assert not {"train_step", "compute_loss"} & vars(model).keys()
