"""One arm of hook_overhead.py: a training loop with one way of watching it, driven over stdin.

Runs in the environment of what it measures, so it imports nothing but torch until it is told to.
Requests and replies are lines of JSON: {"do": "block", "seconds": S} trains and replies with nanoseconds per
step, {"do": "steps", "count": N} trains without measuring, {"do": "close"} detaches and replies with what is
on disk.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

Step = Callable[[], None]
Close = Callable[[], None]


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
    return hook.close


def by_hand(job: Job, folder: Path) -> Close:
    """What people write into their scripts: two norms of every weight and gradient, read at once."""

    def norms(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter in job.model.parameters():
            assert parameter.grad is not None
            parameter.detach().norm().item()
            parameter.grad.norm().item()

    job.optimizer.register_step_pre_hook(norms)
    return lambda: None


ARMS: dict[str, Callable[[Job, Path], Close]] = {
    "no hook": lambda job, folder: lambda: None,
    "stepwatch, every step": every_step,
    "stepwatch, every step, with ReLU outputs": lambda job, folder: every_step(job, folder, True),
    "stepwatch, default budget": stepwatch,
    "stepwatch, nothing saved": nothing_saved,
    "two norms per tensor by hand": by_hand,
    "smdebug, every step": smdebug,
    "smdebug, every step, with ReLU outputs": lambda job, folder: smdebug(job, folder, True),
}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def train_for(step: Step, seconds: float) -> list[int]:
    times, began = [], time.perf_counter_ns()
    before, limit = began, began + int(seconds * 1e9)
    while before < limit or len(times) < 3:
        step()
        now = time.perf_counter_ns()
        times.append(now - before)
        before = now
    return times


def main(workload: str, arm: str, folder: Path) -> None:
    torch.set_num_threads(2)
    job = Job(workload)
    replies, sys.stdout = sys.stdout, sys.stderr  # libraries print
    close = ARMS[arm](job, folder)
    steps = 0
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        if request["do"] == "block":
            reply["times"] = train_for(job.step, request["seconds"])
            steps += len(reply["times"])
        elif request["do"] == "steps":
            for _ in range(request["count"]):
                job.step()
            steps += request["count"]
        else:
            close()
            reply = {"steps": steps, "bytes": size_of(folder), "stats_bytes": size_of(folder / "stats")}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
