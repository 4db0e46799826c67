"""Trains under smdebug, and prints as one line of JSON what ``import smdebug`` reads of directories.

Usage: smdebug_job.py write|read DIRECTORY...; to write, the name of the directory is the kind of job. Under
smdebug itself when run by the Python of its environment; ``--ours`` as the last argument: under what stands in for it.
"""

from __future__ import annotations

import json
import sys

if sys.argv[-1] == "--ours":
    from stepwatch.rules.smdebug import install

    sys.argv.pop()
    install()

import numpy as np
import smdebug.pytorch as smd
import torch
from smdebug.exceptions import SMDebugError
from smdebug.trials import create_trial
from torch import nn

REDUCTIONS = ("min", "max", "mean", "std", "variance", "sum", "prod", "l1", "l2")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(48, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.relu(self.conv(x)).flatten(1))


def train(folder: str, kind: str) -> None:
    torch.manual_seed(0)
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    every = {"reductions": ["min", "max", "mean", "std", "variance", "sum", "prod"], "norms": ["l1", "l2"]}
    reductions = {
        "raw": None,
        "reductions": smd.ReductionConfig(
            **every, abs_reductions=every["reductions"], abs_norms=every["norms"], save_shape=True
        ),
        "both": smd.ReductionConfig(reductions=["mean"], abs_norms=["l2"], save_raw_tensor=True),
    }[kind]
    hook = smd.Hook(
        folder,
        save_config=smd.SaveConfig({smd.modes.TRAIN: smd.SaveConfigMode(2), smd.modes.EVAL: smd.SaveConfigMode(1)}),
        reduction_config=reductions,
        include_collections=["weights", "biases", "gradients"],
        include_regex="relu_output|conv_input",
    )
    hook.register_module(model)
    hook.register_loss(loss_fn)
    for step in range(7):
        evaluating = step % 3 == 2
        hook.set_mode(smd.modes.EVAL if evaluating else smd.modes.TRAIN)
        loss = loss_fn(model(torch.randn(4, 1, 6, 6)), torch.randint(2, (4,)))
        hook.save_scalar("accuracy", step / 8)
        if not evaluating:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    hook.close()


def plain(value: object) -> object:
    array = np.asarray(value)
    return [str(array.dtype), list(array.shape), [repr(float(each)) for each in array.ravel()]]


def attempt(call: object, *args: object, **kwargs: object) -> object:
    try:
        return plain(call(*args, **kwargs))
    except SMDebugError as error:
        return type(error).__name__
    except (ValueError, KeyError) as error:  # norms of tensors of more than two dimensions
        return type(error).__name__


def describe(folder: str) -> dict[str, object]:
    trial = create_trial(folder)
    modes = [smd.modes.TRAIN, smd.modes.EVAL, smd.modes.PREDICT, smd.modes.GLOBAL]
    tensors = {}
    for name in trial.tensor_names():
        tensor = trial.tensor(name)
        tensors[name] = {
            "steps": {mode.name: tensor.steps(mode) for mode in modes},
            "prev": tensor.prev_steps(5, 2),
            "values": {step: attempt(tensor.value, step) for step in tensor.steps()},
            "evaluated": {step: attempt(tensor.value, step, mode=smd.modes.EVAL) for step in (0, 1, 5)},
            "shapes": {step: attempt(tensor.shape, step) for step in tensor.steps()},
            "workers": {step: tensor.workers(step) for step in tensor.steps()},
            "reductions": {
                f"{'abs ' if of_magnitudes else ''}{reduction}": attempt(
                    tensor.reduction_value, tensor.steps()[-1], reduction, abs=of_magnitudes
                )
                for reduction in REDUCTIONS
                for of_magnitudes in (False, True)
            },
            "saved": sorted(
                f"{'abs ' if of_magnitudes else ''}{reduction}"
                for reduction, of_magnitudes in tensor.reduction_values(tensor.steps()[-1])
            ),
        }
    return {
        "tensors": tensors,
        "steps": {mode.name: trial.steps(mode) for mode in modes},
        "modes": sorted(mode.name for mode in trial.modes()),
        "mode steps": {step: [str(each) for each in trial.mode_modestep(step)] for step in range(8)},
        "global steps": [trial.global_step(mode, step) for mode in modes for step in range(5)],
        "states": [trial.has_passed_step(step, mode).name for mode in modes for step in range(9)],
        "workers": trial.workers(),
        "collections": {
            name: sorted(trial.tensor_names(collection=name)) for name in sorted(trial.collections()) if name != "all"
        },
        "expressions": {name: c.include_regex for name, c in sorted(trial.collections().items())},
        "by expression": trial.tensor_names(regex=["^gradient", "relu"]),
        "by step": {step: trial.tensor_names(step=step) for step in trial.steps()},
        "by mode": {mode.name: trial.tensor_names(mode=mode) for mode in trial.modes()},
        "ended": trial.loaded_all_steps,
        "whole job": [trial.num_workers, trial.last_complete_step, sorted(trial.worker_set), trial.name],
        "incomplete too": trial.steps(smd.modes.GLOBAL, True),
        "prefixed": len(trial.tensor_names(show_prefixed_tensors=True)),
        "lists": [plain(v) for each in (trial.inputs, trial.labels, trial.predictions) for v in each(trial.steps()[0])],
        "ranges": [
            attempt_steps(folder, range_steps=some, check=True) for some in ((2, 5), (None, 4), (5, None), (5, 2))
        ],
    }


def attempt_steps(folder: str, **options: object) -> object:
    try:
        return create_trial(folder, **options).steps()
    except AssertionError:
        return "AssertionError"


def script(folder: str) -> None:
    """What scripts do beside: collections of their own, schedules, functional losses, tensors and scalars."""
    torch.manual_seed(1)
    model, loss_fn = Net(), nn.functional.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = smd.Hook(
        out_dir=folder,
        save_config=smd.SaveConfig(save_interval=2, start_step=2, end_step=9, save_steps=[1]),
        include_collections=["weights", "custom_activations", ["mine"], "metrics"],
    )
    hook.get_collection("mine").include("fc_output")
    hook.get_collection("mine").save_config = smd.SaveConfig(save_interval=3)
    hook.get_collection("weights").reduction_config = smd.ReductionConfig(abs_norms=["l1"], abs_reductions=["std"])
    hook.register_hook(model)
    hook.get_collection("custom_activations").add_module_tensors(model.relu, inputs=True, outputs=True)
    hook.set_mode(smd.modes.TRAIN)
    for step in range(11):
        optimizer.zero_grad()
        if step == 6:
            hook.set_mode(smd.modes.PREDICT)
        if step == 8:
            hook.set_mode(smd.modes.TRAIN)
        loss = loss_fn(model(torch.randn(4, 1, 6, 6)), torch.randint(2, (4,)))
        hook.record_tensor_value(tensor_name="loss", tensor_value=loss)
        hook.save_tensor("doubled", 2 * loss.detach(), collections_to_write=["mine", "default"])
        hook.save_scalar("rate", 0.1 * step)
        loss.backward()
        optimizer.step()
    hook.close()


if __name__ == "__main__":
    if sys.argv[1] == "write":
        for directory in sys.argv[2:]:
            kind = directory.rpartition("/")[2]
            script(directory) if kind == "script" else train(directory, kind)
    print("\n" + json.dumps({directory: describe(directory) for directory in sys.argv[2:]}))
