"""Twenty jobs and thirty rules in smdebug's API, from tables; for smdebug itself and for what stands in for it.

Usage: smdebug_table.py [--ours] record|judge FOLDER: train the jobs into FOLDER, or judge what is there; the result is
a line of JSON, by job and rule.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

if "--ours" in sys.argv:
    from stepwatch.rules.smdebug import install

    sys.argv.remove("--ours")
    install()

import numpy as np
import smdebug.pytorch as smd
import torch
from smdebug.exceptions import *  # noqa: F403 - as rules do
from smdebug.rules.rule import Rule
from smdebug.rules.rule_invoker import invoke_rule
from smdebug.trials import create_trial
from torch import nn

STEPS = 10
BASIC = ["weights", "biases", "gradients"]
SOME = {"reductions": ["min", "max", "mean", "std"], "abs_reductions": ["mean", "max"], "norms": ["l1", "l2"]}
EVERY = ["min", "max", "mean", "std", "variance", "sum", "prod"]

JOBS: dict[str, dict] = {
    "raw": {},
    "every third step": {"save": {"save_interval": 3}},
    "from 2 to 7": {"save": {"save_interval": 1, "start_step": 2, "end_step": 7}},
    "listed steps": {"save": {"save_interval": 100, "save_steps": [1, 4, 5]}},
    "modes": {"modes": "TTETTETTET"},
    "modes by schedule": {"modes": "TTETTETTET", "by_mode": {"TRAIN": 3, "EVAL": 1}},
    "predictions": {"modes": "TTTTPPTTEE", "save": {"save_interval": 2}},
    "some reductions": {"reduce": SOME},
    "every reduction": {"reduce": {"reductions": EVERY, "abs_reductions": EVERY, "norms": ["l1", "l2"]}},
    "norms of magnitudes": {"reduce": {"abs_norms": ["l1", "l2"], "abs_reductions": ["std", "min"]}},
    "reductions and raw": {"reduce": {**SOME, "save_raw_tensor": True}},
    "shapes": {"reduce": {"reductions": ["mean"], "save_shape": True}},
    "everything": {"all": True, "save": {"save_interval": 4}},
    "losses only": {"collections": []},
    "not a number": {"break_at": 6},
    "exploding": {"rate": 30.0},
    "standing still": {"rate": 0.0},
    "dead units": {"bias": -100.0},
    "zero gradients": {"scale": 0.0, "reduce": SOME, "save": {"save_interval": 2}},
    "two workers": {"workers": 2},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.relu = nn.ReLU()
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.relu(self.first(x)))


def record(folder: Path, job: dict) -> None:
    torch.manual_seed(len(folder.name))
    model, loss_fn = Net(), nn.CrossEntropyLoss()
    if "bias" in job:
        nn.init.constant_(model.first.bias, job["bias"])
    optimizer = torch.optim.SGD(model.parameters(), lr=job.get("rate", 0.2))
    schedule = smd.SaveConfig(**job.get("save", {"save_interval": 1}))
    if "by_mode" in job:
        schedule = {smd.modes[mode]: smd.SaveConfigMode(save_interval=n) for mode, n in job["by_mode"].items()}
    hook = smd.Hook(
        str(folder),
        save_config=schedule,
        reduction_config=smd.ReductionConfig(**job["reduce"]) if "reduce" in job else None,
        include_collections=job.get("collections", BASIC),
        include_regex="relu_.*put" if job.get("collections") is None else None,
        save_all=job.get("all", False),
    )
    hook.register_module(model)
    hook.register_loss(loss_fn)
    names = {"T": smd.modes.TRAIN, "E": smd.modes.EVAL, "P": smd.modes.PREDICT}
    for step in range(STEPS):
        if "modes" in job:
            hook.set_mode(names[job["modes"][step]])
        x, y = torch.randn(8, 4), torch.randint(3, (8,))
        loss = loss_fn(model(x * math.nan if step == job.get("break_at") else x), y)
        hook.save_scalar("rate", 0.1 * step)
        if job.get("modes", "T" * STEPS)[step] == "T":
            optimizer.zero_grad()
            (loss * job.get("scale", 1.0)).backward()
            optimizer.step()
    hook.close()


def add_worker(folder: Path) -> None:
    """Give a directory of smdebug a second worker, which recorded the same."""
    for path in [*folder.rglob("*worker_0*")]:
        content = path.read_bytes().replace(b"worker_0.tfevents", b"worker_1.tfevents")
        path.with_name(path.name.replace("worker_0", "worker_1")).write_bytes(content)
    for path in folder.glob("collections/*/*.json"):
        path.write_text(path.read_text().replace('"num_workers": 1', '"num_workers": 2'))


# -- rules --------------------------------------------------------------------------------------------


class Threshold(Rule):
    """A reduction of a tensor of a collection is above a threshold."""

    def __init__(self, base_trial, collection, reduction, threshold, magnitudes=False):
        super().__init__(base_trial, "")
        self.wanted = (collection, reduction, threshold, magnitudes)

    def set_required_tensors(self, step):
        pass

    def invoke_at_step(self, step):
        collection, reduction, threshold, magnitudes = self.wanted
        names = self.base_trial.tensor_names(collection=collection)
        values = [self.base_trial.tensor(n).reduction_value(step, reduction, abs=magnitudes) for n in sorted(names)]
        return any(value > threshold for value in values)


class Function(Rule):
    """A function of the trial and the step."""

    def __init__(self, base_trial, function):
        super().__init__(base_trial, action_str="")
        self.function = function

    def set_required_tensors(self, step):
        pass

    def invoke_at_step(self, step):
        return self.function(self.base_trial, step)


class Required(Rule):
    """A function of the values of required tensors."""

    def __init__(self, base_trial, pattern, function):
        super().__init__(base_trial, action_str="", other_trials=None)
        self.pattern, self.function = pattern, function

    def set_required_tensors(self, step):
        self.req_tensors.add(self.pattern, steps=[step], should_match_regex=True)

    def invoke_at_step(self, step):
        return any(self.function(tensor.value(step)) for tensor in self.req_tensors.get())


class Across(Rule):
    """Weights are those of another trial."""

    def __init__(self, base_trial, other_trial):
        super().__init__(base_trial, "", [other_trial])

    def set_required_tensors(self, step):
        for trial in (self.base_trial, self.other_trials[0]):
            self.req_tensors.add("Net_first.weight", [step], trial=trial)

    def invoke_at_step(self, step):
        one, other = (
            next(iter(self.req_tensors.get(trial))).value(step) for trial in (self.base_trial, self.other_trials[0])
        )
        return bool(np.all(one == other))


def unchanged(trial, step):
    tensor = trial.tensor("Net_first.weight")
    before = tensor.prev_steps(step, 2)
    return len(before) == 2 and bool(np.allclose(tensor.value(before[0]), tensor.value(before[1])))


def not_decreasing(trial, step):
    loss = trial.tensor(sorted(trial.tensor_names(collection="losses"))[0])
    before = loss.prev_steps(step, 3)
    return len(before) == 3 and loss.value(before[-1]) >= loss.value(before[0])


def update_ratio(trial, step):
    for name in sorted(trial.tensor_names(collection="weights")):
        weight, gradient = trial.tensor(name), trial.tensor("gradient/" + name)
        if np.linalg.norm(gradient.value(step)) / np.linalg.norm(weight.value(step)) > 0.2:
            return True
    return False


def dead_units(trial, step):
    names = trial.tensor_names(regex="relu_output")
    return any(np.mean(np.all(trial.tensor(name).value(step) <= 0, axis=0)) > 0.5 for name in names)


def train_loss(trial, step):
    mode, mode_step = trial.mode_modestep(step)
    return mode == smd.modes.TRAIN and trial.tensor("CrossEntropyLoss_output_0").value(mode_step, mode=mode) > 1.0


RULES = {
    "mean of gradients": lambda t: Threshold(t, "gradients", "mean", 0.01),
    "mean magnitude of gradients": lambda t: Threshold(t, "gradients", "mean", 0.05, True),
    "maximum of gradients": lambda t: Threshold(t, "gradients", "max", 0.1),
    "maximum magnitude of gradients": lambda t: Threshold(t, "gradients", "max", 0.2, True),
    "minimum of weights": lambda t: Threshold(t, "weights", "min", -0.4),
    "minimum magnitude of weights": lambda t: Threshold(t, "weights", "min", 0.02, True),
    "deviation of weights": lambda t: Threshold(t, "weights", "std", 0.28),
    "deviation of magnitudes of weights": lambda t: Threshold(t, "weights", "std", 0.15, True),
    "variance of gradients": lambda t: Threshold(t, "gradients", "variance", 0.005),
    "sum of biases": lambda t: Threshold(t, "biases", "sum", 0.3),
    "product of biases": lambda t: Threshold(t, "biases", "prod", 0.0),
    "l1 of biases": lambda t: Threshold(t, "biases", "l1", 1.2),
    "l2 of weights": lambda t: Threshold(t, "weights", "l2", 1.0),
    "l1 of magnitudes of weights": lambda t: Threshold(t, "weights", "l1", 1.5, True),
    "l2 of magnitudes of gradients": lambda t: Threshold(t, "gradients", "l2", 0.3, True),
    "no such reduction": lambda t: Threshold(t, "losses", "middle", 0.0),
    "mean of losses": lambda t: Threshold(t, "losses", "mean", 1.1),
    "unchanged": lambda t: Function(t, unchanged),
    "loss not decreasing": lambda t: Function(t, not_decreasing),
    "update ratio": lambda t: Function(t, update_ratio),
    "dead units": lambda t: Function(t, dead_units),
    "training loss by mode": lambda t: Function(t, train_loss),
    "not a number": lambda t: Required(t, ".*weight", lambda value: bool(np.isnan(value).any())),
    "all zero": lambda t: Required(t, "gradient/.*", lambda value: not value.any()),
    "labels": lambda t: Required(t, "CrossEntropyLoss_input_1", lambda value: bool((value == 0).mean() > 0.3)),
    "scalar": lambda t: Function(t, lambda trial, step: trial.tensor("scalar/rate").value(step)[0] > 0.45),
    "no such tensor": lambda t: Function(t, lambda trial, step: trial.tensor("nothing").value(step) > 0),
    "next step": lambda t: Function(t, lambda trial, step: trial.tensor("Net_last.bias").value(step + 1).sum() > 0),
    "shape": lambda t: Function(t, lambda trial, step: tuple(trial.tensor("Net_last.weight").shape(step)) == (3, 6)),
    "workers": lambda t: Function(t, lambda trial, step: len(trial.tensor("Net_last.bias").workers(step)) == 2),
    "second worker": lambda t: Function(
        t, lambda trial, step: trial.tensor("Net_last.bias").value(step, worker="worker_1").sum() > 0
    ),
    "saved reductions": lambda t: Function(
        t, lambda trial, step: len(trial.tensor("Net_first.weight").reduction_values(step)) > 7
    ),
    "names at a step": lambda t: Function(t, lambda trial, step: len(trial.tensor_names(step=step)) > 12),
    "another trial": lambda t: Across(t, create_trial(str(Path(t.path).parent / "raw"))),
}


def judge(folder: Path) -> dict[str, str]:
    """What each rule says of a job: steps at which it is met, and what else came up; then how the invoker ends."""
    trial = create_trial(str(folder))
    return {name: verdict(make(trial)) for name, make in RULES.items()}


def verdict(rule: Rule) -> str:
    met, raised = [], {}
    for step in range(STEPS + 1):
        try:
            rule.invoke(step)
        except RuleEvaluationConditionMet:  # noqa: F405
            met.append(step)
        except Exception as error:
            raised.setdefault(type(error).__name__, []).append(step)
    try:
        invoke_rule(rule, raise_eval_cond=True)
        end = "end"
    except Exception as error:
        end = f"{type(error).__name__} {getattr(error, 'step', '')}".strip()
    return json.dumps({"met": met, **raised, "invoked": end})


if __name__ == "__main__":
    root = Path(sys.argv[2])
    if sys.argv[1] == "record":
        for name, job in JOBS.items():
            record(root / name, job)
            if job.get("workers") and not (root / name / "run.json").exists():
                add_worker(root / name)
    print("\n" + json.dumps({name: judge(root / name) for name in JOBS}))
