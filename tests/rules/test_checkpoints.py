"""Checkpoints written after a NaN are suspect, and the last healthy one is named. The training is real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.checkpoints import note_checkpoint, read_checkpoints
from stepwatch.probe.store.reader import Trace


def train(folder: Path, steps: range, poison: int | None = None, actions: tuple[str, ...] = ()) -> None:
    """Train, note a checkpoint every fifth step, and feed a NaN at one."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hook = Hook(
        folder / "run",
        model=model,
        optimizer=optimizer,
        save_config=SaveConfig(save_interval=1),
        start_step=steps.start,
        rules=["ExplodingTensor"] if actions else None,
        actions=actions,
        system_interval=0,
    )
    for step in steps:
        inputs = torch.full((8, 4), float("nan")) if step == poison else torch.randn(8, 4)
        optimizer.zero_grad()
        (model(inputs) ** 2).mean().backward()
        optimizer.step()
        if hook.step % 5 == 0:
            path = folder / f"step-{hook.step}.pt"
            torch.save(model.state_dict(), path)
            hook.note_checkpoint(path)
    hook.close()


def listed(folder: Path) -> tuple[int, dict[str, object]]:
    command = [sys.executable, "-m", "stepwatch.cli", "checkpoints", "--json", str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def states(content: dict[str, object]) -> list[tuple[int, int, bool]]:
    rows = content["checkpoints"]
    assert isinstance(rows, list)
    return [(row["attempt"], row["step"], row["suspect"]) for row in rows]


def test_what_is_written_after_the_onset_is_suspect_and_so_is_what_goes_on_from_it(tmp_path: Path) -> None:
    train(tmp_path, range(22), poison=12)
    status, content = listed(tmp_path)
    assert status == 1
    assert states(content) == [(0, 5, False), (0, 10, False), (0, 15, True), (0, 20, True)]
    assert content["last_healthy"] == str(tmp_path / "step-10.pt") and content["warning"] == ""
    assert not torch.load(tmp_path / "step-10.pt")["weight"].isnan().any()
    assert torch.load(tmp_path / "step-15.pt")["weight"].isnan().all()

    train(tmp_path, range(20, 27))
    status, content = listed(tmp_path)
    assert states(content)[-1] == (1, 25, True)
    assert f"it went on from a suspect checkpoint, {tmp_path / 'step-20.pt'}" in str(content["warning"])


def test_a_job_that_goes_on_from_a_suspect_checkpoint_is_told_when_it_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, range(22), poison=12, actions=("log",))
    caplog.clear()
    train(tmp_path, range(10, 16))
    assert "suspect" not in caplog.text  # the healthy one
    train(tmp_path, range(20, 22))
    warning = f"it went on from a suspect checkpoint, {tmp_path / 'step-20.pt'}: written after ExplodingTensor began"
    assert warning in caplog.text
    assert f"the last healthy one: {tmp_path / 'step-15.pt'}, step 15" in caplog.text
    assert any(warning in note for note in Trace(tmp_path / "run").notes)


def test_a_resume_from_the_healthy_one_makes_healthy_ones(tmp_path: Path) -> None:
    train(tmp_path, range(22), poison=12)
    train(tmp_path, range(10, 22))
    status, content = listed(tmp_path)
    assert states(content) == [(0, 5, False), (0, 10, False), (1, 15, False), (1, 20, False)]
    assert status == 0 and content["last_healthy"] == str(tmp_path / "step-20.pt")


def test_the_finding_names_the_last_healthy_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, range(22), poison=12, actions=("log",))
    (row,) = Trace(tmp_path / "run").findings()
    path = str(tmp_path / "step-10.pt")
    assert row["evidence"]["last_healthy_checkpoint"] == path
    assert f"the last healthy checkpoint: {path}, step 10" in row["suggestion"]


def test_the_checkpoint_of_a_stop_is_noted(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hook = Hook(
        tmp_path / "run", model=model, optimizer=optimizer, stop="flag", checkpoint=lambda step: tmp_path / "last.pt"
    )
    hook.request_stop("enough")
    model(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    hook.close()
    assert [(note.path, note.step) for note in read_checkpoints(tmp_path / "run")] == [(str(tmp_path / "last.pt"), 1)]


def test_a_run_that_noted_none_says_how(tmp_path: Path) -> None:
    train(tmp_path, range(3))
    command = [sys.executable, "-m", "stepwatch.cli", "checkpoints", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "hook.note_checkpoint(path)" in done.stdout


def test_a_checkpoint_that_cannot_be_noted_does_not_disturb_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("stepwatch.probe.hook.note_checkpoint", full)
    train(tmp_path, range(6))
    assert any("note_checkpoint: OSError" in note for note in Trace(tmp_path / "run").notes)


def test_of_a_path_that_is_written_again_the_last_counts(tmp_path: Path) -> None:
    for step in (5, 10):
        note_checkpoint(tmp_path, 0, step, "latest.pt")
    assert [note.step for note in read_checkpoints(tmp_path)] == [10]
