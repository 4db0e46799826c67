"""Learning curves in words, of jobs that really train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from stepwatch.cli.commands.show import command
from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.learning import Learning, learning_of


def train(run: Path, *, rate: float, samples: int = 2000, width: int = 16, steps: int = 300) -> Learning:
    torch.manual_seed(0)
    x = torch.randn(samples + 500, 10)
    y = (x[:, :3] + 0.5 * torch.randn(samples + 500, 3)).argmax(1)
    model, loss_fn = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 3)), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    config = SaveConfig(save_interval=10)
    with Hook(run, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0):
        for step in range(steps):
            at = torch.randint(0, samples, (32,))
            model.train()
            optimizer.zero_grad()
            loss_fn(model(x[at]), y[at]).backward()
            optimizer.step()
            if step % 25 == 24:
                model.eval()
                with torch.no_grad():
                    for part in (slice(samples, samples + 250), slice(samples + 250, None)):
                        loss_fn(model(x[part]), y[part])
    return learning_of(Trace(run))


@pytest.mark.parametrize(
    ("rate", "options", "diagnosis"),
    [
        (1e-3, {}, "learning"),
        (1e-8, {}, "underfitting"),
        (1e-2, {"samples": 100, "width": 256}, "overfitting"),
        (3e-2, {"width": 4, "steps": 500}, "converged"),
        (1e30, {}, "diverging"),
        (30.0, {}, "diverging"),  # it jumps at the first step, and stays there
    ],
)
def test_each_course_has_its_word(tmp_path: Path, rate: float, options: dict[str, int], diagnosis: str) -> None:
    learning = train(tmp_path / "run", rate=rate, **options)
    assert learning.diagnosis == diagnosis, learning
    assert learning.confidence in ("sure", "likely")
    assert learning.sentence().startswith(f"{diagnosis} ({learning.confidence}): the training loss")


def test_it_is_shown(tmp_path: Path) -> None:
    learning = train(tmp_path / "run", rate=1e-3, steps=60)
    shown = CliRunner().invoke(command, [str(tmp_path / "run"), "--json"])
    assert json.loads(shown.output)["learning"]["said"] == learning.sentence()


def test_of_a_run_that_has_only_begun_nothing_is_said(tmp_path: Path) -> None:
    assert train(tmp_path / "run", rate=1e-3, steps=10).sentence() == ""
