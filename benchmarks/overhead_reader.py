"""Opens a recorded run and reads all statistics of all tensors; prints seconds, tensors and rows as JSON.

Runs in the environment of what it measures. The time is that of a process that has imported its libraries: smdebug
imports all of them at once, ours when they are first needed.
"""

from __future__ import annotations

import json
import sys
import time


def read_stepwatch(folder: str) -> tuple[float, int, int]:
    import pandas  # noqa: F401
    import pyarrow.dataset  # noqa: F401

    from stepwatch.probe.store.reader import Trace

    began = time.perf_counter()
    trace = Trace(folder)
    statistics = trace.table("stats").to_pandas()
    losses = trace.table("scalars", names=["CrossEntropyLoss_output_0"]).to_pandas()
    seconds = time.perf_counter() - began
    return seconds, statistics["name"].nunique() + 1, len(statistics) + len(losses)


def read_smdebug(folder: str) -> tuple[float, int, int]:
    from smdebug.trials import create_trial

    began = time.perf_counter()
    trial = create_trial(folder)
    rows = 0
    for name in trial.tensor_names():
        tensor = trial.tensor(name)
        for step in tensor.steps():
            rows += 1
            if "Loss" in name:
                tensor.value(step)
                continue
            for reduction in ("min", "max", "mean", "std", "l1", "l2"):
                tensor.reduction_value(step, reduction)
            tensor.reduction_value(step, "max", abs=True)
    return time.perf_counter() - began, len(trial.tensor_names()), rows


if __name__ == "__main__":
    replies, sys.stdout = sys.stdout, sys.stderr  # libraries print
    found = {"stepwatch": read_stepwatch, "smdebug": read_smdebug}[sys.argv[1]](sys.argv[2])
    print(json.dumps(dict(zip(("seconds", "tensors", "rows"), found, strict=True))), file=replies)
