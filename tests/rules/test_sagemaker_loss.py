"""SageMaker's rules about losses: on curves that decide, and on real trainings with evaluations."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.rules.finding import Status
from tests.rules.sagemaker_runs import Net, batch, curve, fires_at, judge, train


def fit(run: Path, *, epochs: int, samples: int, lr: float = 0.05, shuffled: bool = False, **save: int) -> Path:
    """Train on few samples, over and over, with an evaluation on others after each epoch."""
    torch.manual_seed(0)
    model, loss_fn = Net(width=64), nn.CrossEntropyLoss()
    (x, y), (held_x, held_y) = batch(samples), batch(256)
    if shuffled:
        y = y[torch.randperm(samples)]
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    config = SaveConfig(save_interval=save.get("save_interval", 1))
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0):
        for _ in range(epochs):
            model.train()
            for _ in range(5):
                optimizer.zero_grad()
                loss_fn(model(x), y).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                loss_fn(model(held_x), held_y)
    return run


def test_loss_not_decreasing_holds_the_loss_against_the_newest_one_far_enough_back(tmp_path: Path) -> None:
    losses = {0: 0.30, 4: 0.33, 8: 0.31, 12: 0.30, 16: 0.28}
    run = curve(tmp_path / "run", losses)
    assert fires_at(run, "LossNotDecreasing") == 12  # 0.30 against that of step 0
    assert fires_at(curve(tmp_path / "lower", {**losses, 12: 0.29}), "LossNotDecreasing") is None
    assert fires_at(run, "LossNotDecreasing", num_steps="16") is None


def test_loss_not_decreasing_looks_every_num_steps(tmp_path: Path) -> None:
    # Saved every 3 steps, 10 apart: looked at 12, then 24, which is held against 12 and not against what is between.
    losses = {step: 1.0 - step / 100 for step in range(0, 37, 3)}
    assert fires_at(curve(tmp_path / "between", {**losses, 15: 9.0, 18: 9.0, 21: 9.0}), "LossNotDecreasing") is None
    run = curve(tmp_path / "at", {**losses, 24: losses[12]})
    finding = judge(run, "LossNotDecreasing").findings[0]
    assert (finding.first_step, finding.last_step) == (12, 24) and finding.value == 0


def test_loss_not_decreasing_lets_a_small_rise_pass(tmp_path: Path) -> None:
    assert fires_at(curve(tmp_path / "run", {0: 1.0, 10: 1.04, 20: 0.9}), "LossNotDecreasing") is None
    rose = curve(tmp_path / "rose", {0: 1.0, 10: 1.06, 20: 0.9})
    assert fires_at(rose, "LossNotDecreasing") == 10
    assert fires_at(rose, "LossNotDecreasing", increase_threshold_percent="7") is None
    little = curve(tmp_path / "little", {0: 1.0, 10: 0.99, 20: 0.5})
    assert fires_at(little, "LossNotDecreasing") is None
    assert fires_at(little, "LossNotDecreasing", diff_percent="2") == 10


def test_loss_not_decreasing_by_mode(tmp_path: Path) -> None:
    run = curve(tmp_path / "run", [1.0 - i / 100 for i in range(40)], evaluations={s: [1.0] for s in (10, 20, 30)})
    assert fires_at(run, "LossNotDecreasing") == 20  # evaluations come first
    assert fires_at(run, "LossNotDecreasing", mode="TRAIN") is None
    assert fires_at(run, "LossNotDecreasing", mode="EVAL") == 20


def test_loss_not_decreasing_in_training(tmp_path: Path) -> None:
    fixed = batch(64)
    learns = train(tmp_path / "learns", data=lambda: fixed, steps=40)
    assert fires_at(learns, "LossNotDecreasing") is None
    stays = train(tmp_path / "stays", data=lambda: fixed, steps=40, lr=0.0)
    assert fires_at(stays, "LossNotDecreasing") == 10
    assert judge(stays, "LossNotDecreasing", use_losses_collection="false").status is Status.STOPPED
    assert fires_at(stays, "LossNotDecreasing", use_losses_collection="false", tensor_regex="Loss_output") == 10


def test_losses_count_where_the_step_was_saved(tmp_path: Path) -> None:
    fixed = batch(64)
    run = train(tmp_path / "run", data=lambda: fixed, steps=40, lr=0.0, save_interval=8)
    assert fires_at(run, "LossNotDecreasing") == 16


def test_overfit(tmp_path: Path) -> None:
    learns_by_heart = fit(tmp_path / "by_heart", epochs=20, samples=8, lr=0.005)
    finding = judge(learns_by_heart, "Overfit").findings[0]
    assert finding.value > finding.threshold == 0.1 and "above the training loss" in finding.message
    later = fires_at(learns_by_heart, "Overfit", patience="3", start_step="50")
    assert later is not None and later >= 65
    assert fires_at(fit(tmp_path / "general", epochs=4, samples=2000, lr=0.003), "Overfit") is None
    missing = judge(train(tmp_path / "no_evaluation"), "Overfit")
    assert missing.status is Status.STOPPED and "no evaluation" in missing.coverage.missing[0]


def test_overfit_takes_the_mean_of_an_evaluation_and_of_the_training_before_it(tmp_path: Path) -> None:
    losses = [1.0] * 4 + [0.5] * 5
    run = curve(tmp_path / "run", losses, evaluations={4: [1.0, 1.16], 8: [0.5, 0.7]})
    assert fires_at(run, "Overfit") == 8  # 1.08 against 1.0, then 0.6 against 0.5
    assert fires_at(run, "Overfit", ratio_threshold="0.07", patience="2") == 8
    assert fires_at(run, "Overfit", patience="2") is None


def test_overtraining(tmp_path: Path) -> None:
    done = fit(tmp_path / "done", epochs=60, samples=64, lr=0.01)
    finding = judge(done, "Overtraining").findings[0]
    assert finding.first_step < finding.last_step and "no new optimum" in finding.message
    assert fires_at(fit(tmp_path / "short", epochs=5, samples=64, lr=0.01), "Overtraining") is None
    assert judge(train(tmp_path / "no_evaluation"), "Overtraining").status is Status.STOPPED


def test_overtraining_counts_saved_steps_since_the_best(tmp_path: Path) -> None:
    best_at_3 = [1.0, 0.9, 0.8, 0.7] + [0.699] * 12
    run = curve(tmp_path / "run", best_at_3, evaluations={s: [max(0.6, 1 - s / 10)] for s in range(1, 16)})
    # The training loss was best at step 3, the evaluation loss at step 4: ten evaluations later it is step 14.
    assert fires_at(run, "Overtraining") == 14
    # Training losses of step 8 come after the evaluation that stands before it.
    assert fires_at(run, "Overtraining", patience_validation="3") == 8
    assert fires_at(run, "Overtraining", patience_validation="3", delta="0.0005") == 9
