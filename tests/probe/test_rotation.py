"""The last healthy checkpoint is there although newer ones have been rotated in; with the real frameworks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stepwatch.probe import SaveConfig
from stepwatch.probe.rotation import keep_beside
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.suspects import judge_checkpoints, last_healthy, recorded_onsets

BATCHES, SPOILED = 40, 16


def batches() -> list[dict[str, torch.Tensor]]:
    made = [{"x": torch.randn(4, generator=torch.Generator().manual_seed(n))} for n in range(BATCHES)]
    made[SPOILED]["x"][0] = float("nan")
    return made


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(x).square().mean()}


def wait_for_the_finding(run: Path) -> None:
    deadline = time.monotonic() + 60
    while not any(row["rule"] == "ExplodingTensor" for row in Trace(run).findings()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


OPTIONS: dict[str, Any] = {"save_config": SaveConfig(save_interval=1), "system_interval": 0, "rules": "recommended"}


def test_lightning_keeps_it(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint

    from stepwatch.probe.integrations.lightning import StepwatchCallback

    class Lit(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Model()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if index == SPOILED + 2:
                wait_for_the_finding(tmp_path / "run")
            loss: torch.Tensor = self.net(**batch)["loss"]
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    every = ModelCheckpoint(tmp_path / "ckpt", filename="{step}", every_n_train_steps=5, save_top_k=1)
    trainer = lightning.Trainer(
        max_epochs=1,
        callbacks=[StepwatchCallback(tmp_path / "run", **OPTIONS), every],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Lit(), torch.utils.data.DataLoader(batches(), batch_size=None))  # type: ignore[arg-type]
    assert {path.name for path in (tmp_path / "ckpt").iterdir()} == {"step=15.ckpt", "step=40.ckpt"}


def test_a_trainer_of_hugging_face_keeps_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from stepwatch.probe.integrations.transformers import StepwatchCallback

    class Waiting(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == SPOILED + 3:
                wait_for_the_finding(tmp_path / "run")

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "output"),
        per_device_train_batch_size=1,
        max_steps=BATCHES,
        save_steps=5,
        save_total_limit=2,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        train_sampling_strategy="sequential",
    )
    transformers.Trainer(
        model=Model(),
        args=arguments,
        train_dataset=batches(),
        callbacks=[StepwatchCallback(tmp_path / "run", **OPTIONS), Waiting()],
    ).train()
    there = {path.name for path in (tmp_path / "output").iterdir()}
    assert there == {"kept-checkpoint-15", "checkpoint-35", "checkpoint-40"}
    kept = tmp_path / "output" / "kept-checkpoint-15"
    assert {"trainer_state.json", "optimizer.pt"} <= {path.name for path in kept.iterdir()}


def test_keras_does_not_overwrite_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    from stepwatch.probe.integrations.keras import StepwatchCallback

    class Patience(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == SPOILED + 2:
                wait_for_the_finding(tmp_path / "run")

    x = np.stack([each["x"].numpy() for each in batches()])
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "latest.keras", save_freq=4)
    recording = StepwatchCallback(tmp_path / "run", **OPTIONS)
    model.fit(x, x[:, :1], batch_size=1, shuffle=False, callbacks=[recording, Patience(), saving], verbose=0)
    trace = Trace(tmp_path / "run")
    healthy = last_healthy(judge_checkpoints(trace, recorded_onsets(trace.findings())))
    assert healthy is not None and Path(healthy.path) == tmp_path / "kept-16-latest.keras" and healthy.step == SPOILED
    weights = keras.saving.load_model(healthy.path).get_weights()
    assert all(np.isfinite(each).all() for each in weights)
    assert sorted(path.name for path in tmp_path.glob("*.keras")) == ["kept-16-latest.keras", "latest.keras"]
    assert "save" not in vars(model)


def test_a_loop_of_ones_own_asks(tmp_path: Path, make_hook: Any) -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hook = make_hook(model=model, optimizer=optimizer, rules="recommended", save_config=OPTIONS["save_config"])
    written: list[Path] = []
    for step, batch in enumerate(batches()):
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()
        if step == SPOILED:
            wait_for_the_finding(tmp_path / "run")
        if step % 5 == 4:
            written.append(tmp_path / f"{step}.pt")
            torch.save(model.state_dict(), written[-1])
            hook.note_checkpoint(written[-1])
            for old in written[:-1]:
                if old.exists() and hook.may_remove(old):
                    old.unlink()
    hook.close()
    assert {path.name for path in tmp_path.glob("*.pt")} == {"14.pt", "39.pt"}


def test_what_is_kept_is_whole_and_survives_the_original(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-5"
    (checkpoint / "shards").mkdir(parents=True)
    (checkpoint / "shards" / "0.bin").write_bytes(b"weights")
    kept = keep_beside(checkpoint)
    assert keep_beside(checkpoint) == kept == tmp_path / "kept-checkpoint-5"
    (checkpoint / "shards" / "0.bin").unlink()
    assert (kept / "shards" / "0.bin").read_bytes() == b"weights"
    assert not list(tmp_path.glob(".*"))
