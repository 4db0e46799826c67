"""How long smdebug and Stepwatch take for the same: recording a job, reading all of it, evaluating a rule.

A job of 1,000 steps with 53 tensors (13 layers, their weights, biases and gradients, and the loss), all saved whole at
every step. Each measurement is a fresh process with the libraries imported before the clocks start; medians of a few.
Processor time beside wall time, since a machine that others use stretches the latter; smdebug also sleeps, when it
opens a directory and at its end.

    STEPWATCH_SMDEBUG_PYTHON=/path/to/python python benchmarks/smdebug_compat.py [--repeat 3] [--steps 1000]

smdebug runs in an environment of its own: scripts/smdebug_env.sh makes it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
REFERENCE = os.environ.get("STEPWATCH_SMDEBUG_PYTHON") or str(ROOT / ".smdebug-venv" / "bin" / "python")


def record(folder: str, steps: int) -> Clock:
    import smdebug.pytorch as smd
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(*(layer for _ in range(13) for layer in (nn.Linear(16, 16), nn.Tanh())))
    loss_fn = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clock = Clock()
    hook = smd.Hook(
        folder,
        save_config=smd.SaveConfig(save_interval=1),
        include_collections=["weights", "biases", "gradients"],
    )
    hook.register_module(model)
    hook.register_loss(loss_fn)
    for _ in range(steps):
        loss = loss_fn(model(torch.randn(4, 16)), torch.zeros(4, 16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hook.close()
    return clock.stop()


def read(folder: str, steps: int) -> Clock:
    from smdebug.trials import create_trial

    clock = Clock()
    trial = create_trial(folder)
    count = sum(len(trial.tensor(name).values()) for name in trial.tensor_names())
    assert count == 53 * steps, count
    return clock.stop()


def read_at_once(folder: str, steps: int) -> Clock:
    from smdebug.trials import create_trial

    clock = Clock()
    count = sum(len(series.steps) for series in create_trial(folder).arrays().values())
    assert count == 53 * steps, count
    return clock.stop()


def judge(folder: str, steps: int) -> Clock:
    from smdebug.rules.rule import Rule
    from smdebug.rules.rule_invoker import invoke_rule
    from smdebug.trials import create_trial

    class LargeGradient(Rule):
        def __init__(self, base_trial) -> None:  # type: ignore[no-untyped-def]
            super().__init__(base_trial, "")

        def set_required_tensors(self, step: int) -> None:
            pass

        def invoke_at_step(self, step: int) -> bool:
            gradient = self.base_trial.tensor("gradient/Sequential_0.weight")
            return bool(gradient.reduction_value(step, "mean", abs=True) > 1e9)

    clock = Clock()
    invoke_rule(LargeGradient(create_trial(folder)), end_step=steps)
    return clock.stop()


class Clock:
    """Seconds since it was made, on the wall and on the processor."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def stop(self) -> Clock:
        self.wall, self.processor = time.perf_counter() - self.wall, time.process_time() - self.processor
        return self


def measure(what: str, folder: str, steps: int) -> None:
    """In a process of its own."""
    if sys.executable != REFERENCE:
        import pyarrow.parquet  # noqa: F401

        import stepwatch.rules.smdebug.trial  # noqa: F401
        from stepwatch.rules.smdebug import install

        install()
    import smdebug.trials  # noqa: F401

    clock = {"record": record, "read": read, "at once": read_at_once, "judge": judge}[what](folder, steps)
    print("\n" + json.dumps([clock.wall, clock.processor]))


def run(python: str, what: str, folder: Path, steps: int) -> list[float]:
    command = [python, __file__, "--measure", what, str(folder), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    measured: list[float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, options.steps)
        return
    if not Path(REFERENCE).exists():
        raise SystemExit(f"no smdebug at {REFERENCE}; scripts/smdebug_env.sh makes it")
    ours = sys.executable
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recorded: dict[str, list[list[float]]] = {"theirs": [], "ours": []}
        for turn in range(options.repeat):
            for side, python in (("theirs", REFERENCE), ("ours", ours)):
                recorded[side].append(run(python, "record", folder / f"{side}-{turn}", options.steps))
        source, imported = folder / "theirs-0", folder / "imported"
        began = time.perf_counter()
        subprocess.run([ours, "-m", "stepwatch.cli", "import", str(source), str(imported)], check=True)
        importing = time.perf_counter() - began
        rows = [("record with smdebug's API", recorded["theirs"], recorded["ours"])]
        for what, title in (("read", "open and read everything"), ("judge", "evaluate a rule")):
            theirs = [run(REFERENCE, what, source, options.steps) for _ in range(options.repeat)]
            for form, place in (("smdebug's directory", source), ("our Parquet", imported)):
                times = [run(ours, what, place, options.steps) for _ in range(options.repeat)]
                rows.append((f"{title}: {form}", theirs, times))
            if what == "read":
                times = [run(ours, "at once", imported, options.steps) for _ in range(options.repeat)]
                rows.append((f"{title} by arrays(): our Parquet", theirs, times))
    print(f"{options.steps} steps, 53 tensors; seconds on the wall and on the processor, medians of {options.repeat}")
    print(f"{'':52} {'smdebug':>8} {'here':>8} {'ratio':>7}  |{'smdebug':>8} {'here':>8} {'ratio':>7}")
    for title, theirs, times in rows:
        cells = []
        for kind in (0, 1):
            one, other = (statistics.median(each[kind] for each in side) for side in (theirs, times))
            cells.append(f"{one:8.3f} {other:8.3f} {one / other:7.1f}")
        print(f"{title:52} {'  |'.join(cells)}")
    print(f"{'stepwatch import':52} {'':8} {importing:8.3f}")


if __name__ == "__main__":
    main()
