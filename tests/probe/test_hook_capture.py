"""What the hook records equals what one would compute by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stepwatch.probe import Collection, Hook, ReductionConfig, SaveConfig, SaveConfigMode, modes
from stepwatch.probe.store.reader import Trace

from .conftest import Net, batch, frame, scalar


def test_weights_gradients_and_losses_are_those_of_the_step(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn)
    norms, gradients, losses = [], [], []
    for _ in range(5):
        x, y = batch()
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        norms.append(model.fc1.weight.norm().item())
        gradients.append(model.fc2.bias.grad.abs().sum().item())
        losses.append(loss.item())
        optimizer.step()
    hook.close()
    run = tmp_path / "run"
    weights = frame(run, "stats", names=["Net_fc1.weight"])
    assert weights["step"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(weights["l2"], norms, rtol=1e-6)
    np.testing.assert_allclose(frame(run, "stats", names=["gradient/Net_fc2.bias"])["l1"], gradients, rtol=1e-5)
    np.testing.assert_allclose(scalar(run, "CrossEntropyLoss_output_0"), losses, rtol=1e-6)
    assert scalar(run, "learning_rate") == [0.1] * 5


def test_every_default_tensor_has_smdebugs_name_and_its_collections(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn):
        x, y = batch()
        loss_fn(model(x), y).backward()
        optimizer.step()
    tensors = Trace(tmp_path / "run").tensors()
    collections = {name: info.collections for name, info in tensors.items()}
    assert collections == {
        "Net_fc1.weight": ("weights",),
        "Net_fc1.bias": ("biases",),
        "Net_fc2.weight": ("weights",),
        "Net_fc2.bias": ("biases",),
        "gradient/Net_fc1.weight": ("gradients",),
        "gradient/Net_fc1.bias": ("gradients",),
        "gradient/Net_fc2.weight": ("gradients",),
        "gradient/Net_fc2.bias": ("gradients",),
        "relu_output_0": ("activations", "relu_output"),
        "CrossEntropyLoss_output_0": ("losses",),
    }
    assert tensors["Net_fc1.weight"].shape == (8, 6)
    assert tensors["relu_output_0"].module_type == "ReLU"
    assert tensors["Net_fc1.weight"].order < tensors["relu_output_0"].order < tensors["Net_fc2.weight"].order


@pytest.mark.parametrize("how", ["function", "arithmetic"])
def test_a_loss_that_is_no_module_is_the_scalar_that_backward_is_called_on(tmp_path: Path, make_hook, how) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer, loss_fn=functional.cross_entropy if how == "function" else None)
    losses = []
    for _ in range(3):
        x, y = batch()
        loss = functional.cross_entropy(model(x), y) if how == "function" else (model(x) ** 2).mean() + 1.0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    hook.close()
    name = "cross_entropy_loss_output_0" if how == "function" else "loss_output_0"
    np.testing.assert_allclose(scalar(tmp_path / "run", name), losses, rtol=1e-6)


def test_accumulated_micro_batches_are_one_step_with_the_accumulated_gradient(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn)
    gradients, losses = [], []
    for _ in range(3):
        optimizer.zero_grad()
        parts = []
        for _ in range(4):
            x, y = batch()
            loss = loss_fn(model(x), y)
            (loss / 4).backward()
            parts.append(loss.item())
        gradients.append(model.fc1.weight.grad.norm().item())
        losses.append(float(np.mean(parts)))
        optimizer.step()
    hook.close()
    run = tmp_path / "run"
    assert frame(run, "steps")["step"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(frame(run, "stats", names=["gradient/Net_fc1.weight"])["l2"], gradients, rtol=1e-6)
    np.testing.assert_allclose(scalar(run, "CrossEntropyLoss_output_0"), losses, rtol=1e-6)
    assert set(frame(run, "stats")["name"]) >= {"relu_output_0"}
    assert "relu_output_1" not in set(frame(run, "stats")["name"])


def test_evaluation_between_micro_batches_does_not_end_the_step(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn):
        x, y = batch()
        loss_fn(model(x), y).backward()
        model.eval()
        with torch.no_grad():
            loss_fn(model(x), y)
        model.train()
        loss_fn(model(x), y).backward()
        optimizer.step()
    steps = frame(tmp_path / "run", "steps")
    assert sorted(zip(steps["mode"], steps["step"], strict=True)) == [("EVAL", 0), ("TRAIN", 0)]


def test_modes_follow_the_model_and_evaluations_have_the_step_they_follow(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn)
    evaluated = []
    for _ in range(2):
        model.train()
        for _ in range(3):
            x, y = batch()
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            x, y = batch()
            evaluated.append(loss_fn(model(x), y).item())
        hook.log("accuracy", 0.5)
    hook.close()
    run = tmp_path / "run"
    losses = frame(run, "scalars", names=["CrossEntropyLoss_output_0"], modes=["EVAL"])
    assert losses["step"].tolist() == [3, 6]
    np.testing.assert_allclose(losses["value"], evaluated, rtol=1e-6)
    assert frame(run, "scalars", names=["accuracy"])["mode"].tolist() == ["EVAL", "EVAL"]
    assert frame(run, "steps", modes=["TRAIN"])["step"].tolist() == [0, 1, 2, 3, 4, 5]


def test_set_mode_overrules_the_model_and_a_logged_loss_is_an_evaluation_loss(tmp_path: Path, make_hook) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer)
    for epoch in range(2):
        hook.set_mode(modes.TRAIN)
        x, _ = batch()
        model(x).sum().backward()
        optimizer.step()
        hook.set_mode(modes.EVAL)
        hook.log("loss", 0.25 + epoch)
    hook.close()
    assert scalar(tmp_path / "run", "loss", "EVAL") == [0.25, 1.25]
    assert frame(tmp_path / "run", "scalars", names=["loss"])["step"].tolist() == [1, 2]


def test_frozen_and_shared_parameters(tmp_path: Path, make_hook) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.frozen = nn.Linear(4, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight
            self.frozen.requires_grad_(False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.frozen(self.embed(tokens)))

    model = Tied()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with make_hook(model=model, optimizer=optimizer):
        model(torch.randint(10, (8,))).sum().backward()
        optimizer.step()
    names = set(frame(tmp_path / "run", "stats")["name"])
    assert {"Tied_embed.weight", "gradient/Tied_embed.weight", "Tied_frozen.weight"} <= names
    assert "Tied_head.weight" not in names
    assert "gradient/Tied_frozen.weight" not in names


def test_a_module_called_twice_and_nested_outputs_are_counted_on(tmp_path: Path, make_hook) -> None:
    @dataclasses.dataclass
    class Out:
        logits: torch.Tensor
        extra: dict[str, list[torch.Tensor]]

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)
            self.relu = nn.ReLU()

        def forward(self, x: torch.Tensor) -> Out:
            first = self.relu(self.fc(x))
            second = self.relu(self.fc(first))
            return Out(second, {"hidden": [first, first * 2]})

    model = Twice()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer, include_collections=["activations", "outputs"])
    x, _ = batch()
    out = model(x)
    sums = [out.logits.sum().item(), out.extra["hidden"][0].sum().item(), out.extra["hidden"][1].sum().item()]
    out.logits.sum().backward()
    optimizer.step()
    hook.close()
    stats = frame(tmp_path / "run", "stats").set_index("name")
    assert set(stats.index) == {"relu_output_0", "relu_output_1", *(f"Twice_output_{k}" for k in range(3))}
    recorded = [stats.loc[f"Twice_output_{k}", "mean"] * stats.loc[f"Twice_output_{k}", "numel"] for k in range(3)]
    np.testing.assert_allclose(recorded, sums, rtol=1e-5)


def test_a_models_own_loss_is_the_evaluation_loss(tmp_path: Path, make_hook) -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.fc(x)
            return {"loss": functional.cross_entropy(logits, y), "logits": logits}

    model = WithLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer)
    x, y = batch()
    model(x, y)["loss"].backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        expected = model(x, y)["loss"].item()
    hook.close()
    assert scalar(tmp_path / "run", "loss_output_0", "EVAL") == [pytest.approx(expected)]
    assert len(scalar(tmp_path / "run", "loss_output_0", "TRAIN")) == 1


def test_gradients_under_a_scaler_are_unscaled_and_a_skipped_step_is_none(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    hook = make_hook(model=model, optimizer=optimizer)
    expected, losses = [], []
    for number in range(4):
        x, y = batch()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        if number == 1:
            model.fc1.weight.grad[0, 0] = float("inf")  # an overflow: the scaler leaves this step out
        else:
            expected.append(model.fc1.weight.grad.norm().item() / scaler.get_scale())
            losses.append(loss.item())
        scaler.step(optimizer)
        scaler.update()
    hook.close()
    run = tmp_path / "run"
    gradients = frame(run, "stats", names=["gradient/Net_fc1.weight"])
    np.testing.assert_allclose(gradients["l2"], expected, rtol=1e-5)
    assert gradients["n_inf"].sum() == 0
    np.testing.assert_allclose(scalar(run, "loss_output_0"), losses, rtol=1e-5)
    assert scalar(run, "grad_scaler/skipped") == [1.0]


def test_a_fused_optimizer_that_unscales_by_itself(tmp_path: Path, make_hook) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    hook = make_hook(model=model, optimizer=optimizer)
    expected = []
    for number in range(3):
        optimizer.zero_grad()
        x, y = batch()
        scaler.scale(functional.cross_entropy(model(x), y)).backward()
        if number == 1:
            model.fc1.weight.grad[0, 0] = float("inf")
        else:
            expected.append(model.fc1.weight.grad.norm().item() / scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    hook.close()
    gradients = frame(tmp_path / "run", "stats", names=["gradient/Net_fc1.weight"])
    np.testing.assert_allclose(gradients["l2"], expected, rtol=1e-5)


def test_sparse_gradients_count_their_implicit_zeros(tmp_path: Path, make_hook) -> None:
    model = nn.Sequential(nn.EmbeddingBag(50, 4, sparse=True), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer)
    model(torch.tensor([[1, 2, 2], [3, 1, 1]])).sum().backward()
    expected = model[0].weight.grad.to_dense()
    optimizer.step()
    hook.close()
    row = frame(tmp_path / "run", "stats", names=["gradient/Sequential_0.weight"]).iloc[0]
    assert row["numel"] == 200
    assert row["n_zero"] == int((expected == 0).sum())
    assert row["l2"] == pytest.approx(expected.norm().item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(tmp_path: Path, make_hook, dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer)
    x, _ = batch()
    model(x.to(dtype)).float().square().mean().backward()
    expected = model.fc1.weight.double().norm().item()
    optimizer.step()
    hook.close()
    row = frame(tmp_path / "run", "stats", names=["Net_fc1.weight"]).iloc[0]
    assert row["l2"] == pytest.approx(expected, rel=1e-6)
    assert Trace(tmp_path / "run").tensors()["Net_fc1.weight"].dtype == str(dtype).removeprefix("torch.")


def test_a_closure_optimizer_records_the_gradients_of_its_last_evaluation(tmp_path: Path, make_hook) -> None:
    model, (x, y) = Net(), batch()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    hook = make_hook(model=model, optimizer=optimizer)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    norms = []
    for _ in range(3):
        optimizer.step(closure)
        norms.append(model.fc1.weight.grad.norm().item())
    hook.close()
    run = tmp_path / "run"
    assert frame(run, "steps")["step"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(frame(run, "stats", names=["gradient/Net_fc1.weight"])["l2"], norms, rtol=1e-6)


def test_a_gan_has_two_models_two_optimizers_and_two_losses(tmp_path: Path, make_hook) -> None:
    generator, critic = nn.Linear(4, 6), Net()
    optimizers = [torch.optim.Adam(critic.parameters()), torch.optim.Adam(generator.parameters())]
    hook = make_hook(model={"G": generator, "D": critic}, optimizer=optimizers)
    first, second = [], []
    for _ in range(3):
        optimizers[0].zero_grad()
        loss = critic(generator(torch.randn(8, 4)).detach()).mean() - critic(torch.randn(8, 6)).mean()
        loss.backward()
        optimizers[0].step()
        first.append(loss.item())
        optimizers[1].zero_grad()
        loss = -critic(generator(torch.randn(8, 4))).mean()
        loss.backward()
        optimizers[1].step()
        second.append(loss.item())
    hook.close()
    run = tmp_path / "run"
    names = set(frame(run, "stats")["name"])
    assert {"G_weight", "gradient/G_weight", "D_fc1.weight", "gradient/D_fc1.weight"} <= names
    np.testing.assert_allclose(scalar(run, "loss_output_0"), first, rtol=1e-6)
    np.testing.assert_allclose(scalar(run, "loss_output_1"), second, rtol=1e-6)


def test_losses_belong_to_the_optimizer_that_steps_next(tmp_path: Path, make_hook) -> None:
    generator, critic = nn.Linear(4, 6), Net()
    optimizers = [torch.optim.Adam(critic.parameters()), torch.optim.Adam(generator.parameters())]
    hook = make_hook(model={"G": generator, "D": critic}, optimizer=optimizers)
    critics, generators = [], []
    for turn in range(12):
        fake = critic(generator(torch.randn(8, 4))).mean()
        learner = turn % 4 == 3  # the critic learns three times as often
        loss = -fake if learner else fake - critic(torch.randn(8, 6)).mean()
        (generators if learner else critics).append(loss.item())
        optimizers[learner].zero_grad()
        loss.backward()
        optimizers[learner].step()
    critic(generator(torch.randn(8, 4))).mean().backward()  # and no step any more
    hook.close()
    run = tmp_path / "run"
    np.testing.assert_allclose(scalar(run, "loss_output_0")[: len(critics)], critics, rtol=1e-6)
    np.testing.assert_allclose(scalar(run, "loss_output_1"), generators, rtol=1e-6)
    assert len(scalar(run, "loss_output_0")) == len(critics) + 1


def test_optimizers_that_step_together_belong_to_one_step(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizers = [torch.optim.SGD(model.fc1.parameters(), lr=0.1), torch.optim.Adam(model.fc2.parameters(), lr=0.2)]
    hook = make_hook(model=model, optimizer=optimizers, loss_fn=loss_fn)
    norms = []
    for _ in range(4):
        x, y = batch()
        model.zero_grad()
        loss_fn(model(x), y).backward()
        norms.append([model.fc1.weight.grad.norm().item(), model.fc2.weight.grad.norm().item()])
        for optimizer in optimizers:
            optimizer.step()
    hook.close()
    run = tmp_path / "run"
    for name, column in (("fc1", 0), ("fc2", 1)):
        rows = frame(run, "stats", names=[f"gradient/Net_{name}.weight"])
        assert rows["step"].tolist() == [0, 1, 2, 3]
        np.testing.assert_allclose(rows["l2"], [each[column] for each in norms], rtol=1e-6)
    assert scalar(run, "learning_rate/optimizer_1") == [0.2] * 4
    steps = frame(run, "steps")
    assert steps["step"].tolist() == [0, 1, 2, 3]
    phases = steps[["data_ns", "forward_ns", "backward_ns", "optimizer_ns"]].sum(axis=1)
    assert (phases <= steps["duration_ns"]).all()
    assert hook.step == 4 and Trace(run).notes == []


def test_updates_without_gradients_are_steps_like_others(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=SaveConfig(save_interval=100)):
        for step in range(4):
            x, y = batch()
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            if step == 0:
                loss.backward()
            optimizer.step()
    trace = Trace(tmp_path / "run")
    assert trace.notes == [] and trace.counters == {}
    assert frame(tmp_path / "run", "steps")["step"].tolist() == [0, 1, 2, 3]


def test_a_compiled_model_is_recorded_as_far_as_it_can_be_and_says_so(tmp_path: Path, make_hook) -> None:
    model = Net()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=compiled, optimizer=optimizer)
    for _ in range(2):
        x, y = batch()
        optimizer.zero_grad()
        functional.cross_entropy(compiled(x), y).backward()
        optimizer.step()
    hook.close()
    run = tmp_path / "run"
    assert {"Net_fc1.weight", "gradient/Net_fc1.weight"} <= set(frame(run, "stats")["name"])
    assert len(scalar(run, "loss_output_0")) == 2
    assert any("activations" in note for note in Trace(run).notes)


def test_compiling_after_the_hook_leaves_the_graph_whole(tmp_path: Path, make_hook) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        x, y = batch()
        optimizer.zero_grad()
        functional.cross_entropy(compiled(x), y).backward()
        optimizer.step()
    hook.close()
    run = tmp_path / "run"
    assert frame(run, "stats", names=["gradient/Net_fc1.weight"])["step"].tolist() == [0, 1]
    assert Trace(run).counters == {}
    assert any("Net" in note and "not recorded" in note for note in Trace(run).notes)


def test_schedules_by_mode_and_by_collection(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = SaveConfig({modes.TRAIN: SaveConfigMode(save_interval=4, start_step=2, save_steps=[1])})
    hook = make_hook(
        model=model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        save_config=config,
        include_collections=["weights", Collection("gradients", save_config=SaveConfig(save_interval=5, end_step=6))],
    )
    for _ in range(10):
        x, y = batch()
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    hook.close()
    run = tmp_path / "run"
    assert frame(run, "stats", names=["Net_fc1.weight"])["step"].tolist() == [1, 4, 8]
    assert frame(run, "stats", names=["gradient/Net_fc1.weight"])["step"].tolist() == [0, 5]
    assert len(scalar(run, "CrossEntropyLoss_output_0")) == 10


def test_whole_tensors_custom_tensors_and_regular_expressions(tmp_path: Path, make_hook) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(
        model=model,
        optimizer=optimizer,
        include_collections=[],
        include_regex=["fc2.weight$", "^fc1_input"],
        reduction_config=ReductionConfig(save_raw_tensor=True),
    )
    x, y = batch()
    functional.cross_entropy(model(x), y).backward()
    mine = torch.arange(6.0).reshape(2, 3)
    hook.save_tensor("attention", mine)
    weight = model.fc2.weight.detach().clone()
    optimizer.step()
    hook.close()
    values = frame(tmp_path / "run", "values").set_index("name")
    assert set(values.index) == {"Net_fc2.weight", "gradient/Net_fc2.weight", "fc1_input_0", "attention"}

    def restored(name: str) -> np.ndarray:
        row = values.loc[name]
        return np.frombuffer(row["data"], dtype=row["dtype"]).reshape(row["shape"])

    np.testing.assert_array_equal(restored("Net_fc2.weight"), weight.numpy())
    np.testing.assert_array_equal(restored("attention"), mine.numpy())
    np.testing.assert_array_equal(restored("fc1_input_0"), x.numpy())


def test_without_an_optimizer_each_forward_pass_is_a_step(tmp_path: Path, make_hook) -> None:
    model = Net()
    with make_hook(model=model), torch.no_grad():
        for _ in range(3):
            model(batch()[0])
    assert frame(tmp_path / "run", "steps")["step"].tolist() == [0, 1, 2]


def test_a_batch_that_the_script_leaves_out_is_no_bad_loss(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn)
    kept = []
    for number in range(4):
        x, y = batch()
        if number == 2:
            x[0, 0] = float("nan")
        loss = loss_fn(model(x), y)
        if not torch.isfinite(loss):
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kept.append(loss.item())
    hook.close()
    np.testing.assert_allclose(scalar(tmp_path / "run", "CrossEntropyLoss_output_0"), kept, rtol=1e-6)


def test_no_reference_keeps_activations_or_gradients_alive(make_hook) -> None:
    import gc
    import weakref

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer)
    seen: list[weakref.ref[torch.Tensor]] = []
    model.relu.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    x, y = batch()
    functional.cross_entropy(model(x), y).backward()
    seen.append(weakref.ref(model.fc1.weight.grad))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    assert [ref() for ref in seen] == [None, None]
    assert isinstance(hook, Hook)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_gradient_that_breaks_at_a_step_that_is_not_due_is_recorded_at_that_very_step(
    tmp_path: Path, make_hook, broken: float
) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=SaveConfig(save_interval=100))
    for step in range(20):
        optimizer.zero_grad()
        x, y = batch()
        hidden = model.relu(model.fc1(x))
        if step == 13:  # the loss of this step is finite, what its gradient goes through is not
            hidden.register_hook(lambda gradient: gradient * broken)
        loss_fn(model.fc2(hidden), y).backward()
        optimizer.step()
    hook.close()
    gradients = frame(tmp_path / "run", "stats", names=["gradient/Net_fc1.bias", "gradient/Net_fc2.bias"])
    steps = frame(tmp_path / "run", "steps")
    assert steps[steps["saved"]]["step"].tolist() == [0, 13, 14, 15, 16, 17]
    at_once = gradients[gradients["step"] == 13].set_index("name")
    assert at_once.loc["gradient/Net_fc1.bias", ["n_nan", "n_inf"]].sum() > 0
    assert at_once.loc["gradient/Net_fc2.bias", ["n_nan", "n_inf"]].sum() == 0


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.block = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(checkpoint(self.block, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_that_are_computed_again_in_the_backward_pass_are_recorded_once(
    tmp_path: Path, make_hook, reentrant: bool
) -> None:
    model, loss_fn = Checkpointed(reentrant), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn)
    expected = []
    for _ in range(3):
        x, y = batch()
        optimizer.zero_grad()
        with torch.no_grad():
            expected.append(model.block(model.first(x)).norm().item())
        loss_fn(model(x), y).backward()
        optimizer.step()
    hook.close()
    activations = frame(tmp_path / "run", "stats")
    activations = activations[activations["name"].str.startswith("block")]
    assert set(activations["name"]) == {"block.1_output_0"}
    assert activations.sort_values("step")["l2"].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("to_none", [True, False])
def test_every_implementation_of_an_optimizer(
    tmp_path: Path, make_hook, options: dict[str, bool], to_none: bool
) -> None:
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, **options)
    hook = make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn)
    weights, gradients = [], []
    for _ in range(3):
        x, y = batch()
        optimizer.zero_grad(set_to_none=to_none)
        loss_fn(model(x), y).backward()
        weights.append(model.fc1.weight.norm().item())
        gradients.append(model.fc1.weight.grad.norm().item())
        optimizer.step()
    hook.close()
    stats = frame(tmp_path / "run", "stats").sort_values("step").groupby("name")["l2"].apply(list)
    assert stats["Net_fc1.weight"] == pytest.approx(weights, rel=1e-5)
    assert stats["gradient/Net_fc1.weight"] == pytest.approx(gradients, rel=1e-5)


def test_a_half_precision_model_with_master_weights_in_the_optimizer(tmp_path: Path, make_hook) -> None:
    model, loss_fn = Net().bfloat16(), nn.CrossEntropyLoss()
    masters = [nn.Parameter(parameter.detach().float()) for parameter in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer, loss_fn=loss_fn)
    gradients, weights = [], []
    for _ in range(3):
        x, y = batch()
        loss_fn(model(x.bfloat16()).float(), y).backward()
        gradients.append(model.fc2.weight.grad.float().norm().item())
        weights.append(model.fc2.weight.float().norm().item())
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)
                parameter.grad = None
    hook.close()
    stats = frame(tmp_path / "run", "stats").sort_values("step").groupby("name")["l2"].apply(list)
    assert stats["gradient/Net_fc2.weight"] == pytest.approx(gradients, rel=1e-5)
    assert stats["Net_fc2.weight"] == pytest.approx(weights, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_that_runs_as_a_cuda_graph(tmp_path: Path, make_hook) -> None:
    model = Net().cuda()
    x = torch.randn(16, 6, device="cuda")
    y = torch.randint(0, 3, (16,), device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = make_hook(model=model, optimizer=optimizer)
    graphed = torch.cuda.make_graphed_callables(model, (x,))
    expected = []
    for _ in range(4):
        optimizer.zero_grad(set_to_none=False)
        functional.cross_entropy(graphed(x), y).backward()
        expected.append(model.fc1.weight.grad.norm().item())
        optimizer.step()
    hook.close()
    gradients = frame(tmp_path / "run", "stats", names=["gradient/Net_fc1.weight"])
    np.testing.assert_allclose(gradients["l2"], expected, rtol=1e-5)
    assert Trace(tmp_path / "run").counters == {}
