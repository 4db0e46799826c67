"""``stepwatch run`` finds trainers of frameworks by itself: real scripts, in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepwatch.probe.store.control import read_acknowledgement
from stepwatch.probe.store.reader import Trace

TRAINERS = """
import keras, lightning, numpy, pytorch_lightning, torch, transformers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

x = torch.randn(64, 8)
y = (x.sum(1) > 0).long()


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Lit:
    def __init__(self, rate):
        super().__init__()
        self.net, self.rate = Classifier(), rate

    def training_step(self, batch, index):
        return self.net(*batch)["loss"]

    def validation_step(self, batch, index):
        return self.net(*batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


rows = [{"x": a, "labels": b} for a, b in zip(x, y)]
arguments = transformers.TrainingArguments("output", num_train_epochs=1, save_strategy="no", report_to=[], use_cpu=True)
trainer = transformers.Trainer(model=Classifier(), args=arguments, train_dataset=rows, eval_dataset=rows)
trainer.evaluate()
trainer.train()

model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(2, name="head")])
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.predict(x.numpy(), verbose=0)
model.fit(x.numpy(), y.numpy(), batch_size=8, epochs=1, verbose=0)

batches = DataLoader(TensorDataset(x, y), batch_size=8)
options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
for name, epochs, rate in ((pytorch_lightning, 1, 0.01), (lightning, 1000, 1e18)):
    trainer = name.Trainer(max_epochs=epochs, accelerator="cpu", **options)
    trainer.fit(type("Lit", (Lit, name.LightningModule), {})(rate), batches, batches)
"""

OWN_LOOP = """
import accelerate, torch
from torch import nn

accelerator = accelerate.Accelerator(cpu=True)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e18))
for step in range(100_000):
    x = torch.randn(16, 8)
    optimizer.zero_grad()
    accelerator.backward(nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long()))
    optimizer.step()
    accelerator.log({"batches": step})
"""


def run(folder: Path, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(script)
    command = [sys.executable, "-m", "stepwatch.cli", "run", "--out", "run", "--stop", *options, "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def test_trainers_record_and_stop_in_their_own_way(tmp_path: Path) -> None:
    if not all(importlib.util.find_spec(each) for each in ("keras", "lightning", "transformers")):
        pytest.skip("needs keras, lightning and transformers")
    done = run(tmp_path, TRAINERS, "--save-interval", "1")
    assert done.returncode == 1, f"the last training was stopped: {done.stderr}"
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run", "run-2", "run-3", "run-4"]
    of_trainer, of_keras, of_old_lightning, of_lightning = traces = [
        Trace(run) for run in sorted(tmp_path.glob("run*"))
    ]
    assert [trace.status() for trace in traces] == ["finished", "finished", "finished", "stopped"]
    assert {"gradient/Classifier_net.0.weight", "net.1_output_0"} <= set(of_trainer.tensors())
    losses = of_trainer.table("scalars", names=["loss_output_0"]).to_pandas()
    assert losses["step"].tolist() == list(range(8)), "what the Trainer evaluated before is no part of the run"
    assert "gradient/Sequential_head.kernel" in of_keras.tensors()
    assert of_keras.table("steps")["step"].to_pylist() == list(range(8))
    assert of_old_lightning.table("steps", modes=["TRAIN"])["step"].to_pylist() == list(range(8))
    assert "gradient/Lit_net.net.0.weight" in of_lightning.tensors()
    answer = read_acknowledgement(of_lightning.path, 0)
    assert answer is not None and str(answer.checkpoint).endswith(".ckpt")
    assert "Traceback" not in done.stderr


def test_a_loop_of_accelerate_is_stopped_with_its_state_saved(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    done = run(tmp_path, OWN_LOOP)
    assert done.returncode == 1 and "stopped after" in done.stderr
    trace = Trace(tmp_path / "run")
    assert "batches" in trace.table("scalars").column("name").to_pylist()
    answer = read_acknowledgement(tmp_path / "run", 0)
    assert answer is not None and any(Path(tmp_path / str(answer.checkpoint)).glob("*.safetensors"))
