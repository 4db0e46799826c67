"""Training scripts written for smdebug's hook, unmodified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from stepwatch.probe.mode_keys import modes
from stepwatch.probe.smdebug.collection import Collection, CollectionManager
from stepwatch.probe.smdebug.configuration import ReductionConfig, SaveConfig, SaveConfigMode
from stepwatch.probe.smdebug.errors import SMDebugError, SMDebugRuntimeError, SMDebugTypeError, SMDebugValueError
from stepwatch.probe.smdebug.hook import Hook, del_hook, get_hook, set_hook
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.trial import create_trial
from tests.smdebug_reference import KINDS, differences, job


@pytest.mark.smdebug
def test_scripts_record_what_smdebug_records(smdebug_jobs: tuple[Path, dict], tmp_path: Path) -> None:
    """The same scripts under smdebug itself and under what stands in for it: every query gives the same."""
    ours = job(Path(sys.executable), "write", *(tmp_path / kind for kind in KINDS), "--ours")
    assert differences(smdebug_jobs[1], ours) == []
    trace = Trace(tmp_path / "script")
    rates = trace.table("scalars", columns=["step", "value"], names=["scalar/rate"])
    assert rates["value"].to_pylist() == pytest.approx([0.1 * step for step in range(11)])  # at every step here
    assert trace.notes == []


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.fc(x))


def train(hook: Hook, steps: int = 4) -> None:
    torch.manual_seed(0)
    model, loss_fn = Net(), nn.MSELoss()
    hook.register_module(model)
    hook.register_loss(loss_fn)
    for _ in range(steps):
        loss_fn(model(torch.randn(5, 3)), torch.zeros(5, 2)).backward()
    hook.close()


def test_a_configuration_of_sagemaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "debughookconfig.json"
    path.write_text(
        json.dumps(
            {
                "S3OutputPath": "s3://bucket/prefix",
                "LocalPath": str(tmp_path / "run"),
                "HookParameters": {"save_interval": "2", "train.save_interval": "3", "eval.save_steps": "1, 2"},
                "CollectionConfigurations": [
                    {"CollectionName": "weights", "CollectionParameters": {"reductions": "mean,abs_l2_norm"}},
                    {"CollectionName": "fc", "CollectionParameters": {"include_regex": "fc_output", "end_step": "2"}},
                    {"CollectionName": "gradients", "CollectionParameters": None},
                ],
            }
        )
    )
    monkeypatch.setenv("SMDEBUG_CONFIG_FILE_PATH", str(path))
    del_hook()
    hook = get_hook(create_if_not_exists=True)
    assert hook is not None and get_hook() is hook
    train(hook)
    assert hook.save_config.get_save_config(modes.TRAIN) == SaveConfigMode(save_interval=3)
    assert hook.save_config.should_save_step(modes.EVAL, 1) and not hook.save_config.should_save_step(modes.EVAL, 3)
    trial = create_trial(tmp_path / "run")
    assert trial.steps() == [0, 2]
    weight = trial.tensor("Net_fc.weight")
    assert list(weight.reduction_values(2)) == [("mean", False), ("l2", True)] and weight.values() == {}
    assert trial.tensor("fc_output_0").steps() == [0]
    assert trial.tensor("gradient/Net_fc.bias").value(2).shape == (2,)
    monkeypatch.setenv("USE_SMDEBUG", "false")
    assert get_hook() is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected an object"),
        ("{", "not valid JSON"),
        ('{"CollectionConfigurations": [{}]}', "has no CollectionName"),
        ('{"HookParameters": {"save_interval": "often"}}', "often"),
        ('{"HookParameters": {"reductions": "mode"}}', "'mode' is unknown"),
    ],
)
def test_a_configuration_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "debughookconfig.json"
    path.write_text(content)
    with pytest.raises(SMDebugValueError, match=message):
        Hook.create_from_json_file(str(path))
    with pytest.raises(FileNotFoundError):
        Hook.create_from_json_file(str(tmp_path / "none.json"))


def test_configurations_and_their_json() -> None:
    config = SaveConfig({modes.TRAIN: SaveConfigMode(10), "EVAL": {"save_interval": 5, "save_steps": [3]}})
    assert config.get_save_config(modes.PREDICT) is None
    config.merge_default_save_config(SaveConfig(save_interval=7))
    assert config.to_json_dict()["PREDICT"]["save_interval"] == 7
    assert SaveConfig.from_json(config.to_json()) == config
    assert SaveConfig().should_save_step(modes.TRAIN, 500) and not SaveConfig().should_save_step(modes.TRAIN, 100)
    assert SaveConfig(save_steps=[7]).should_save_step(modes.TRAIN, 0)  # the interval goes on
    reductions = ReductionConfig(["mean"], ["max"], ["l1"], ["l2"], save_shape=True)
    assert reductions.to_json_dict()["reductions"] == "mean,l1_norm,abs_max,abs_l2_norm"
    assert ReductionConfig.from_json(reductions.to_json()) == reductions
    collection = Collection("mine", "fc", ["a"], reductions, config)
    again = Collection.from_json(collection.to_json())
    assert (again.include_regex, again.tensor_names, again.save_config) == (["fc"], {"a"}, config)
    manager = CollectionManager()
    assert set(manager.get_collections()) == {"default", "all", "weights", "biases", "gradients", "losses"}
    with pytest.raises(SMDebugError, match="mine"):
        manager.get("mine", create=False)
    for wrong in (
        lambda: SaveConfig(save_steps="1,2"),
        lambda: SaveConfig({"TEST": None}),
        lambda: SaveConfig(save_interval=0),
        lambda: ReductionConfig(["mode"]),
        lambda: ReductionConfig(save_raw_tensor="yes"),
    ):
        with pytest.raises(SMDebugValueError):
            wrong()
    with pytest.raises(SMDebugTypeError):
        collection.include([1])


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out_dir"):
        Hook()
    hook = Hook(str(tmp_path / "run"), save_all=True)
    with pytest.raises(SMDebugValueError, match="mode"):
        hook.set_mode("TRAIN")
    with pytest.raises(SMDebugTypeError, match="expected one number"):
        hook.save_scalar("x", [1, 2])
    with pytest.raises(SMDebugError, match="Module"):
        hook.register_module(3)
    with pytest.raises(AssertionError):
        hook.register_loss(torch.nn.functional.mse_loss)
    with pytest.raises(SMDebugTypeError):
        hook.add_collection("weights")
    train(hook)
    assert {"MSELoss_input_1", "Net_input_0", "Net_output_0"} <= set(create_trial(tmp_path / "run").tensor_names())
    with pytest.raises(SMDebugRuntimeError, match="is over"):
        Hook(str(tmp_path / "run"))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    hook = Hook(str(tmp_path / "run"), dry_run=True)
    hook.save_scalar("x", 1)
    train(hook)
    assert not (tmp_path / "run").exists()
    set_hook(hook)
    assert get_hook() is hook


def test_our_rules_judge_it_and_it_can_be_exported(tmp_path: Path) -> None:
    train(Hook(str(tmp_path / "run"), save_config=SaveConfig(save_interval=1), include_collections=["weights"]))
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    for command in (["analyze", "run"], ["show", "run"], ["export", "--format", "smdebug", "run", "theirs"]):
        done = subprocess.run(
            [sys.executable, "-m", "stepwatch.cli", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert create_trial(tmp_path / "theirs").steps() == create_trial(tmp_path / "run").steps() == [0, 1, 2, 3]


@pytest.mark.filterwarnings("error")
def test_types_that_smdebug_fails_at(tmp_path: Path) -> None:
    """bfloat16, which NumPy lacks, and labels, of which there is no mean."""
    config = ReductionConfig(["mean", "std", "max"], save_raw_tensor=True)
    hook = Hook(str(tmp_path / "run"), reduction_config=config, save_config=SaveConfig(save_interval=1), save_all=True)
    model, loss_fn = nn.Linear(3, 2).to(torch.bfloat16), nn.CrossEntropyLoss()
    hook.register_module(model)
    hook.register_loss(loss_fn)
    loss_fn(model(torch.ones(4, 3, dtype=torch.bfloat16)).float(), torch.tensor([0, 1, 1, 0])).backward()
    hook.close()
    trial = create_trial(tmp_path / "run")
    weight = trial.tensor("Linear_weight")
    assert weight.value(0).dtype == "float32"
    assert weight.reduction_value(0, "max") == weight.value(0).max()
    assert list(trial.tensor("CrossEntropyLoss_input_1").reduction_values(0)) == [("max", False)]
    assert any("mean of CrossEntropyLoss_input_1 is not saved" in note for note in Trace(tmp_path / "run").notes)
