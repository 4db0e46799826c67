"""Trains one job with and without a hook in turn, for hook_overhead.py; prints what it measured as JSON.

Runs in the environment of what it measures, so it imports nothing but torch until it is told to.

    overhead_worker.py compare WORKLOAD LIBRARY ROUNDS SECONDS limits|-     step times of every way of watching
    overhead_worker.py record WORKLOAD LIBRARY STEPS FOLDER                 record that many steps
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

Close = Callable[[], None]
Watch = Callable[["Job", Path], Close]


class Mlp(nn.Module):
    """Linear layers with ReLUs between them."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.depth = len(widths) - 1
        for index in range(self.depth):
            self.add_module(f"fc{index}", nn.Linear(widths[index], widths[index + 1]))
            if index < self.depth - 1:
                self.add_module(f"relu{index}", nn.ReLU())
        self.layers = list(self.children())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


WORKLOADS = {"wide": [512] * 7, "narrow": [64] * 13 + [10]}


class Job:
    """A model, its data and its optimizer."""

    def __init__(self, workload: str) -> None:
        torch.manual_seed(0)
        widths = WORKLOADS[workload]
        self.model = Mlp(widths)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.loss_fn = nn.CrossEntropyLoss()
        self.inputs = torch.randn(64, widths[0])
        self.labels = torch.randint(0, widths[-1], (64,))

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss_fn(self.model(self.inputs), self.labels).backward()
        self.optimizer.step()


def stepwatch(job: Job, folder: Path, **options: Any) -> Close:
    from stepwatch.probe import Hook

    hook = Hook(folder, model=job.model, optimizer=job.optimizer, loss_fn=job.loss_fn, **options)
    return hook.close


def every_step(job: Job, folder: Path, activations: bool = False) -> Close:
    from stepwatch.probe import SaveConfig

    collections = ["weights", "biases", "gradients", "losses"] + ["relu_output"] * activations
    return stepwatch(job, folder, save_config=SaveConfig(save_interval=1), include_collections=collections)


def nothing_saved(job: Job, folder: Path) -> Close:
    from stepwatch.probe import SaveConfig

    return stepwatch(job, folder, save_config=SaveConfig(save_interval=1 << 40))


hooked: list[Any] = []


def smdebug(job: Job, folder: Path, activations: bool = False) -> Close:
    import smdebug.pytorch as smd

    hook = smd.Hook(
        out_dir=str(folder),
        save_config=smd.SaveConfig(save_interval=1),
        reduction_config=smd.ReductionConfig(
            reductions=["min", "max", "mean", "std"], abs_reductions=["max"], norms=["l1", "l2"]
        ),
        include_collections=["weights", "biases", "gradients", "losses"],
        include_regex=[r"relu\d+_output"] if activations else None,
    )
    hook.register_module(job.model)
    hook.register_loss(job.loss_fn)
    hooked.append(hook)
    return lambda: None  # it cannot be detached: the job stays with it


def by_hand(job: Job, folder: Path) -> Close:
    """What people write into their scripts: two norms of every weight and gradient, read at once."""

    def norms(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter in job.model.parameters():
            assert parameter.grad is not None
            parameter.detach().norm().item()
            parameter.grad.norm().item()

    return job.optimizer.register_step_pre_hook(norms).remove


def empty_hooks(job: Job, folder: Path) -> Close:
    """What any recorder pays before it does anything: functions of Python that torch calls where ours are called."""
    backward = torch.autograd.backward

    def heard_backward(*args: Any, **kwargs: Any) -> Any:
        return backward(*args, **kwargs)

    handles = [
        job.model.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True),
        job.model.register_forward_hook(lambda module, args, output: None),
        job.loss_fn.register_forward_hook(lambda module, args, output: None),
        job.optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: None),
        job.optimizer.register_step_post_hook(lambda optimizer, args, kwargs: None),
    ]
    torch.autograd.backward = heard_backward

    def close() -> None:
        torch.autograd.backward = backward
        for handle in handles:
            handle.remove()

    return close


def sums(job: Job, folder: Path) -> Close:
    """The same, and every weight and gradient read once: a sum, of which nothing is kept."""
    close = empty_hooks(job, folder)

    def read(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        with torch.no_grad():
            for parameter in job.model.parameters():
                parameter.sum()
                parameter.grad.sum()

    handle = job.optimizer.register_step_pre_hook(read)

    def close_both() -> None:
        handle.remove()
        close()

    return close_both


def wandb_watch(job: Job, folder: Path) -> Close:
    """W&B's own way: histograms of parameters and gradients, in offline mode."""
    import wandb

    folder.mkdir(parents=True)
    run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(console="off"))
    run.watch(job.model, log="all", log_freq=1)
    handle = job.optimizer.register_step_post_hook(lambda *_: run.log({}))

    def close() -> None:
        handle.remove()
        run.unwatch(job.model)
        run.finish()

    return close


def tensorboard_histograms(job: Job, folder: Path) -> Close:
    """What tutorials do: a histogram of every parameter and gradient."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    step = 0

    def write(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal step
        step += 1
        for name, parameter in job.model.named_parameters():
            writer.add_histogram(name, parameter, step)
            writer.add_histogram(f"gradient/{name}", parameter.grad, step)

    handle = job.optimizer.register_step_pre_hook(write)

    def close() -> None:
        handle.remove()
        writer.close()

    return close


PEERS: dict[str, tuple[str, Watch]] = {
    "wandb.watch, every step": ("wandb", wandb_watch),
    "TensorBoard histograms, every step": ("tensorboard", tensorboard_histograms),
}
LIMITS: dict[str, Watch] = {
    "limit: hooks that do nothing": empty_hooks,
    "limit: such hooks, and a plain sum of every tensor": sums,
}
STEPWATCH: dict[str, Watch] = {
    "stepwatch, every step": every_step,
    "stepwatch, every step, with ReLU outputs": lambda job, folder: every_step(job, folder, True),
    "stepwatch, default budget": stepwatch,
    "stepwatch, nothing saved": nothing_saved,
    "two norms per tensor by hand": by_hand,
    **{name: watch for name, (module, watch) in PEERS.items() if importlib.util.find_spec(module)},
}
SMDEBUG: dict[str, Watch] = {
    "smdebug, every step": smdebug,
    "smdebug, every step, with ReLU outputs": lambda job, folder: smdebug(job, folder, True),
}


def train_for(job: Job, seconds: float) -> list[int]:
    """Nanoseconds of each step."""
    times: list[int] = []
    before = began = time.perf_counter_ns()
    while before - began < seconds * 1e9 or len(times) < 3:
        job.step()
        now = time.perf_counter_ns()
        times.append(now - before)
        before = now
    return times


def train(job: Job, steps: int) -> None:
    for _ in range(steps):
        job.step()


def compare(workload: str, library: str, rounds: int, seconds: float, *, limits: bool) -> dict[str, Any]:
    """Step times of blocks: each with a hook between two without."""
    plain = Job(workload)
    train(plain, 50)
    blocks: dict[str, list[list[int]]] = {"no hook": []}
    ways = SMDEBUG if library == "smdebug" else STEPWATCH | (LIMITS if limits else {})
    scratch = Path(tempfile.mkdtemp())
    twins = {name: Job(workload) for name in SMDEBUG} if library == "smdebug" else {}
    for name, twin in twins.items():
        ways[name](twin, scratch / name)
    for turn in range(rounds):
        for name, watch in ways.items():
            blocks["no hook"].append(train_for(plain, seconds / 2))
            if library == "smdebug":
                train(twins[name], 2)
                blocks.setdefault(name, []).append(train_for(twins[name], seconds))
                continue
            close = watch(plain, scratch / f"{name} {turn}")
            train(plain, 3 if name in PEERS else 40)  # a budget has been translated into an interval by then
            blocks.setdefault(name, []).append(train_for(plain, seconds))
            close()
    blocks["no hook"].append(train_for(plain, seconds / 2))
    for hook in hooked:
        hook.close()
    shutil.rmtree(scratch)
    return {"blocks": blocks, "ways": list(ways)}


def record(workload: str, library: str, steps: int, folder: Path) -> dict[str, Any]:
    """What a run of so many steps leaves on disk."""
    job = Job(workload)
    close = (every_step if library == "stepwatch" else smdebug)(job, folder)
    train(job, steps)
    close()
    for hook in hooked:
        hook.close()
    return {"bytes": size_of(folder), "stats_bytes": size_of(folder / "stats")}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    torch.set_num_threads(2)
    verb, workload, library = sys.argv[1:4]
    replies, sys.stdout = sys.stdout, sys.stderr  # libraries print
    if verb == "compare":
        rounds, seconds, limits = sys.argv[4:]
        found = compare(workload, library, int(rounds), float(seconds), limits=limits == "limits")
    else:
        found = record(workload, library, int(sys.argv[4]), Path(sys.argv[5]))
    json.dump(found, replies)


if __name__ == "__main__":
    main()
