"""A training script as a user would write it; ``python -m stepwatch.cli.demo.job SCENARIO DIRECTORY``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from stepwatch.cli.demo.digits import Digits
from stepwatch.cli.demo.scenarios import SCENARIOS, Scenario
from stepwatch.probe import Hook, SaveConfig, TrainingStopped


def train(scenario: Scenario, run_dir: Path, seed: int) -> None:
    """Train with a hook that judges as it goes and stops the job after a checkpoint."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # two of these run side by side
    digits = scenario.data(Digits.load())
    model, loss_fn = scenario.model(), scenario.loss()
    optimizer = scenario.optimizer(model)

    def checkpoint(step: int) -> Path:
        path = run_dir / f"checkpoint-{step}.pt"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)
        return path

    hook = Hook(
        run_dir,
        model=model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        save_config=SaveConfig(save_interval=5),
        rules="recommended",
        actions=["stop"],
        checkpoint=checkpoint,
    )
    with hook:
        for _ in range(scenario.epochs):
            model.train()
            for images, labels in digits.batches(scenario.batch_size):
                optimizer.zero_grad()
                loss_fn(model(images), labels).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                logits = model(digits.eval_images)
                loss_fn(logits, digits.eval_labels)
                hook.log("accuracy", (logits.argmax(1) == digits.eval_labels).float().mean())


def planned_steps(scenario: Scenario) -> int:
    """Optimizer steps of the whole run."""
    images = len(scenario.data(Digits.load()).train_labels)
    return images // scenario.batch_size * scenario.epochs


def main(words: Sequence[str] | None = None) -> None:
    """Run one scenario, given by these words of a command line; ends quietly when it is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    try:
        train(SCENARIOS[arguments.scenario], arguments.run_dir, arguments.seed)
    except TrainingStopped as stopped:
        print(stopped)


if __name__ == "__main__":
    main()
