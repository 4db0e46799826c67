"""Each adapter with the real framework, on short real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stepwatch.probe import SaveConfig, TrainingStopped
from stepwatch.probe.store.control import read_acknowledgement
from stepwatch.probe.store.reader import Trace

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY = SaveConfig(save_interval=1)
ENDLESS = 1000  # epochs: a stop comes some steps after what it is asked for


def data(count: int = 320) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 0).long()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def loader(batch_size: int = 32) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=batch_size)


def scalars(trace: Trace, mode: str) -> dict[str, list[int]]:
    rows = trace.table("scalars", modes=[mode]).to_pandas()
    return {str(name): group["step"].tolist() for name, group in rows.groupby("name")}


def checkpoint_of(run: Path) -> Path:
    """Where the acknowledgement of the stop says that the checkpoint is."""
    answer = read_acknowledgement(run, 0)
    assert answer is not None and answer.checkpoint is not None
    return Path(answer.checkpoint)


# -- Lightning ------------------------------------------------------------------------------------------


def fit(
    run: Path,
    lr: float,
    *,
    epochs: int = 3,
    accumulate: int = 1,
    resume: Path | None = None,
    fails_at: int | None = None,
    **options: Any,
) -> Any:
    lightning = pytest.importorskip("lightning")
    from stepwatch.probe.integrations.lightning import StepwatchCallback

    class Lit(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss = network(), nn.CrossEntropyLoss()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if index == fails_at:
                raise RuntimeError("the disk is full")
            loss: torch.Tensor = self.loss(self.net(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", self.loss(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=lr)

    callback = StepwatchCallback(run, save_config=EVERY, system_interval=0, **options)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.parent,
    )
    trainer.fit(Lit(), loader(), loader(), ckpt_path=resume, weights_only=False)
    return trainer


def test_lightning_records_steps_of_the_optimizer(tmp_path: Path) -> None:
    trainer = fit(tmp_path / "run", 0.1, accumulate=2)
    trace = Trace(tmp_path / "run")
    assert trainer.global_step == 15 and trace.status() == "finished"
    training, evaluation = scalars(trace, "TRAIN"), scalars(trace, "EVAL")
    assert sorted(set(training["CrossEntropyLoss_output_0"])) == list(range(15))
    assert set(training["train_loss"]) == set(range(15)) and "val_loss" not in training
    assert sorted(set(evaluation["val_loss"])) == [5, 10, 15] and "train_loss" not in evaluation
    assert set(evaluation["CrossEntropyLoss_output_0"]) == {5, 10, 15}, "the sanity check is not part of the run"
    stats = trace.table("stats", modes=["TRAIN"]).to_pandas()
    assert {"Lit_net.0.weight", "gradient/Lit_net.2.bias", "net.1_output_0"} <= set(stats["name"])
    assert stats.groupby("name")["step"].nunique()["gradient/Lit_net.0.weight"] == 15


def test_lightning_stops_with_a_checkpoint_that_it_can_resume(tmp_path: Path) -> None:
    trainer = fit(tmp_path / "lost", 1e18, epochs=ENDLESS, rules="recommended", actions=["stop"])
    trace = Trace(tmp_path / "lost")
    assert trainer.global_step < 10 * ENDLESS and trainer.should_stop and trace.status() == "stopped"
    checkpoint = checkpoint_of(tmp_path / "lost")
    saved = torch.load(checkpoint, weights_only=False)
    assert saved["global_step"] == trainer.global_step
    epochs = trainer.global_step // 10 + 2
    resumed = fit(tmp_path / "lost", 0.1, epochs=epochs, resume=checkpoint)
    assert resumed.global_step == 10 * epochs
    assert [entry["start_step"] for entry in Trace(tmp_path / "lost").attempts(0).entries] == [0, trainer.global_step]


def test_lightning_says_why_a_fit_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the disk is full"):
        fit(tmp_path / "run", 0.1, fails_at=3)
    trace = Trace(tmp_path / "run")
    end = trace.end(0)
    assert end is not None and (end.status, end.reason) == ("exception", "RuntimeError: the disk is full")


# -- Hugging Face ---------------------------------------------------------------------------------------


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def huggingface(run: Path, lr: float, epochs: int = 3, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    from stepwatch.probe.integrations.transformers import StepwatchCallback

    rows = [{"x": x, "labels": y} for x, y in zip(*data(), strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(run.parent / "output"),
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_train_epochs=epochs,
        learning_rate=lr,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=5,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model=Classifier(),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows[:32],
        callbacks=[StepwatchCallback(run, save_config=EVERY, system_interval=0, **options)],
    )
    trainer.train()
    return trainer


def test_a_trainer_is_recorded_by_optimizer_steps(tmp_path: Path) -> None:
    trainer = huggingface(tmp_path / "run", 0.01)
    trace = Trace(tmp_path / "run")
    assert trainer.state.global_step == 30 and trace.status() == "finished"
    training, evaluation = scalars(trace, "TRAIN"), scalars(trace, "EVAL")
    assert sorted(set(training["loss_output_0"])) == list(range(30))
    assert training["loss"] == [4, 9, 14, 19, 24, 29]
    assert evaluation["eval_loss"] == [10, 20, 30] and set(evaluation["loss_output_0"]) == {10, 20, 30}
    assert "Classifier_net.0.weight" in trace.tensors() and "gradient/Classifier_net.2.bias" in trace.tensors()


def test_a_trainer_saves_its_own_checkpoint_and_stops(tmp_path: Path) -> None:
    trainer = huggingface(tmp_path / "run", 1e30, ENDLESS, rules="recommended", actions=["stop"])
    stopped_at = trainer.state.global_step
    assert stopped_at < 10 * ENDLESS and Trace(tmp_path / "run").status() == "stopped"
    checkpoint = checkpoint_of(tmp_path / "run")
    assert checkpoint == tmp_path / "output" / f"checkpoint-{stopped_at}"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == stopped_at


# -- Accelerate -----------------------------------------------------------------------------------------


def accelerated(run: Path, lr: float, epochs: int = 4, **options: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    from stepwatch.probe.integrations.accelerate import watch

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, loss_fn = network(), nn.CrossEntropyLoss()
    model, optimizer, batches = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=lr), loader())
    hook = watch(
        accelerator,
        run,
        model=model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        save_config=EVERY,
        system_interval=0,
        **options,
    )
    for epoch in range(epochs):
        for x, y in batches:
            with accelerator.accumulate(model):
                accelerator.backward(loss_fn(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
        accelerator.log({"epochs_done": epoch + 1, "note": "text is passed over"})
    accelerator.end_training()
    assert hook.step == 20


def test_a_loop_driven_by_accelerate_is_recorded(tmp_path: Path) -> None:
    accelerated(tmp_path / "run", 0.1)
    trace = Trace(tmp_path / "run")
    assert trace.status() == "finished"
    assert sorted(set(scalars(trace, "TRAIN")["CrossEntropyLoss_output_0"])) == list(range(20))
    assert scalars(trace, "TRAIN")["epochs_done"] == [4, 9, 14, 19]


def test_accelerate_saves_its_state_before_a_stop(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped) as stopped:
        accelerated(tmp_path / "run", 1e18, ENDLESS, rules="recommended", actions=["stop"])
    assert stopped.value.checkpoint is not None
    assert any(Path(stopped.value.checkpoint).glob("*.safetensors"))
    assert Trace(tmp_path / "run").status() == "stopped"


# -- Optuna ---------------------------------------------------------------------------------------------


def test_optuna_prunes_the_trials_that_are_lost(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from stepwatch.probe.integrations.optuna import pruning

    def objective(trial: Any) -> float:
        lr = trial.suggest_categorical("lr", [0.1, 1e18])
        model, loss_fn = network(), nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        run = tmp_path / f"trial-{trial.number}"
        with pruning(trial, run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=EVERY):
            for _ in range(10 if lr == 0.1 else ENDLESS):
                for x, y in loader():
                    optimizer.zero_grad()
                    loss = loss_fn(model(x), y)
                    loss.backward()
                    optimizer.step()
        return loss.item()

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.GridSampler({"lr": [0.1, 1e18]}))
    study.optimize(objective, n_trials=2)
    by_rate = {trial.params["lr"]: trial for trial in study.trials}
    good, lost = by_rate[0.1], by_rate[1e18]
    assert good.state.name == "COMPLETE" and "stepwatch_reason" not in good.user_attrs
    assert lost.state.name == "PRUNED" and "NaN" in lost.user_attrs["stepwatch_reason"]
    statuses = {trial.number: Trace(trial.user_attrs["stepwatch_run"]).status() for trial in study.trials}
    assert statuses == {good.number: "finished", lost.number: "stopped"}
