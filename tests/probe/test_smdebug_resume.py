"""Jobs that SageMaker takes away and starts again, and Horovod's timeline, by smdebug's names."""

# ruff: noqa: E402 - smdebug's names are there from install() on

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from stepwatch.rules.smdebug import install

install()

import smdebug.pytorch as smd
from smdebug import modes
from smdebug.core.state_store import StateStore
from smdebug.profiler import LocalAlgorithmMetricsReader
from smdebug.profiler.hvd_trace_file_rotation import HvdTraceFileRotation
from smdebug.profiler.profiler_config_parser import ProfilerConfigParser
from smdebug.trials import create_trial


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that SageMaker's configuration names."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (tmp_path / "checkpointconfig.json").write_text(json.dumps({"LocalPath": str(folder)}))
    monkeypatch.setenv("CHECKPOINT_CONFIG_FILE_PATH", str(tmp_path / "checkpointconfig.json"))
    return folder


def train(out_dir: Path, checkpoints: Path, steps: int, checkpoint_at: int) -> None:
    """Training steps with one evaluation before the third, and a checkpoint after one of them."""
    smd.del_hook()
    hook = smd.Hook(str(out_dir), save_config=smd.SaveConfig(save_interval=2), include_collections=["weights"])
    model = torch.nn.Linear(2, 1)
    hook.register_module(model)
    for step in range(steps):
        if step == 3:
            hook.set_mode(modes.EVAL)
            model(torch.ones(1, 2))
        hook.set_mode(modes.TRAIN)
        model(torch.ones(1, 2)).sum().backward()
        if step == checkpoint_at:
            (checkpoints / f"{out_dir.name}.pt").write_text("weights")
    hook.close()


def test_a_job_that_is_started_again_counts_on(tmp_path: Path, checkpoints: Path) -> None:
    train(tmp_path / "first", checkpoints, steps=9, checkpoint_at=6)
    states = json.loads((checkpoints / "metadata.json").read_text())
    expected = {"training-run": 0, "latest-global-step-saved": 7, "latest-global-step-seen": 7}
    assert states == [{**expected, "latest-mode-step": {"TRAIN": 6, "EVAL": 0, "GLOBAL": 7}}]
    train(tmp_path / "second", checkpoints, steps=6, checkpoint_at=1)
    trial = create_trial(str(tmp_path / "second"))
    assert trial.steps(mode=modes.TRAIN) == [8, 10, 12]
    assert trial.steps() == [9, 12, 14]  # the evaluation between counts too
    assert StateStore().get_last_saved_state()["training-run"] == 1
    train(tmp_path / "third", checkpoints, steps=2, checkpoint_at=5)
    assert create_trial(str(tmp_path / "third")).steps(mode=modes.TRAIN) == [10]


def test_checkpoints_that_come_and_change(checkpoints: Path) -> None:
    store = StateStore()
    assert not store.is_checkpoint_updated() and store.get_last_saved_state() is None
    (checkpoints / "metadata.json").write_text("[]")
    (checkpoints / "a.sagemaker-uploaded").write_text("")
    assert not store.is_checkpoint_updated()
    (checkpoints / "epoch-1").mkdir()
    (checkpoints / "epoch-1" / "weights").write_text("1")
    assert store.is_checkpoint_updated() and not store.is_checkpoint_updated()
    (checkpoints / "epoch-1" / "weights").write_text("more")
    assert store.is_checkpoint_updated()


@pytest.mark.parametrize("content", ["{", "{}", "[[[1]]]", '[{"training-run": "x"}]', "[" * 100_000, "\0"])
def test_states_that_are_none_are_left_out(checkpoints: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    (checkpoints / "metadata.json").write_text(content)
    assert StateStore().get_last_saved_state() is None
    assert str(checkpoints / "metadata.json") in caplog.text


def test_no_checkpoints_no_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_CONFIG_FILE_PATH", str(tmp_path / "none.json"))
    store = StateStore()
    assert not store.is_checkpoint_updated()
    store.update_state({"latest-global-step-seen": 1})
    assert store.get_last_saved_state() == {"latest-global-step-seen": 1}


def test_horovods_timeline_becomes_files_of_the_profiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    growing, output, config = tmp_path / "horovod.json", tmp_path / "profiler", tmp_path / "profilerconfig.json"
    config.write_text(json.dumps({"ProfilingParameters": {"LocalPath": str(output)}}))
    monkeypatch.setenv("SMPROFILER_CONFIG_PATH", str(config))
    assert not HvdTraceFileRotation(ProfilerConfigParser("pytorch")).enabled
    monkeypatch.setenv("HOROVOD_TIMELINE", str(growing))
    began = time.time()
    now = time.monotonic() * 1e6
    entries = [
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "gradient/fc"}},
        {"name": "NEGOTIATE_ALLREDUCE", "ph": "B", "pid": 1, "ts": now},
        {"ph": "E", "pid": 1, "ts": now + 500, "args": {"dtype": "float32"}},
        {"name": "CYCLE_START", "ph": "i", "pid": 0, "ts": now + 600, "s": "g"},
        {"name": "ALLREDUCE", "ph": "X", "pid": 1, "ts": now + 700, "dur": 300},
    ]
    growing.write_text("[\n" + ",\n".join(map(json.dumps, entries)) + ',\n{"name": "half an ev')
    reader = HvdTraceFileRotation(ProfilerConfigParser("pytorch"))
    assert reader.enabled
    reader.close()
    (file,) = output.glob("framework/pevents/*/*_horovod_timeline.json")
    metrics = LocalAlgorithmMetricsReader(str(output))
    events = metrics.get_events(0, 1 << 60)
    assert [(event.event_name, event.event_phase, event.duration) for event in events] == [
        ("NEGOTIATE_ALLREDUCE", "gradient/fc", 500),
        ("ALLREDUCE", "gradient/fc", 300),
    ]
    assert abs(events[0].start_time / 1e6 - began) < 60  # the monotonic clock counts from elsewhere
    assert [each["ts"] for each in json.loads(file.read_text()) if each["ph"] == "B"] == [0]
