"""What recording costs a training step, beside no hook and other ways to the same content.

One process trains one job; blocks with a hook lie between blocks without, and each is compared with the mean of
its two neighbours. (Two processes that do the same differ by a tenth, by where their memory lies.) A block is
long enough to hold a flush to disk. smdebug runs in its own environment, on a twin of the job in the same
process, since its hooks cannot be taken off. W&B and TensorBoard are measured where they are installed.

"Step" is the median over blocks of the mean step, "hook" and "ratio" are medians over blocks of the difference
and the quotient. "Middle step" is the same for the median step of a block, which leaves out what happens once a
second. What other processes took of the machine meanwhile is printed: much of it, and the numbers say little.
Without --quick two limits are measured as well: what hooks of Python cost that do nothing, and such hooks with a plain
sum of every tensor.

    python benchmarks/hook_overhead.py --quick                     # under two minutes
    python benchmarks/hook_overhead.py --smdebug-python PATH       # where scripts/smdebug_env.sh was not used
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
REFERENCE = HERE.parent / ".smdebug-venv" / "bin" / "python"

WORKLOADS = {
    "wide": "MLP of six 512x512 layers, batch 64, Adam: 25 tensors, 12.6 MB of weights and gradients",
    "narrow": "MLP of twelve 64-wide layers and a head of 10, batch 64, Adam: 53 tensors",
}
HEADER = "| | step, us | hook, us | ratio | middle step, us | hook, us | ratio |\n|---|---:|---:|---:|---:|---:|---:|"


def run(python: Path, script: str, *arguments: object) -> tuple[dict[str, Any], float]:
    """The JSON that a script prints, and the share of the machine that other processes took meanwhile."""
    command = [str(python), str(HERE / script), *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    before = psutil.cpu_times()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert process.stdout
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-3000:]}")
    after = psutil.cpu_times()
    idle = after.idle - before.idle + getattr(after, "iowait", 0.0) - getattr(before, "iowait", 0.0)
    elapsed = sum(after) - sum(before)
    others = elapsed - idle - used.ru_utime - used.ru_stime
    return json.loads(printed), max(0.0, others / elapsed)


def compare(python: Path, workload: str, library: str, rounds: int, seconds: float, *, limits: bool) -> None:
    """Print one row for each way of watching, and one for no hook."""
    words = ("compare", workload, library, rounds, seconds, "limits" if limits else "-")
    found, others = run(python, "overhead_worker.py", *words)
    blocks: dict[str, list[list[int]]] = found["blocks"]
    ways: list[str] = found["ways"]
    rows: dict[str, list[str]] = {name: [] for name in ("no hook", *ways)}
    averages: tuple[Callable[[list[int]], float], ...] = (mean, median)
    for average in averages:
        plain = [average(block) / 1000 for block in blocks["no hook"]]
        rows["no hook"] += [f"{median(plain):.0f}", "", ""]
        for place, name in enumerate(ways):
            mine = [average(block) / 1000 for block in blocks[name]]
            at = range(place, len(plain) - 1, len(ways))
            beside = [(plain[index] + plain[index + 1]) / 2 for index in at]
            extra = median(m - p for m, p in zip(mine, beside, strict=True))
            ratio = median(m / p for m, p in zip(mine, beside, strict=True))
            rows[name] += [f"{median(mine):.0f}", f"{extra:.0f}", f"x{ratio:.3f}"]
    for name, cells in rows.items():
        title = f"no hook, beside {library} (other processes: {others:.0%})" if name == "no hook" else name
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


def measure_storage(python: Path, library: str, workload: str, steps: int, folder: Path) -> None:
    """Print the row of what one library leaves on disk, and how long it takes to read."""
    left, _ = run(python, "overhead_worker.py", "record", workload, library, steps, folder)
    read, _ = run(python, "overhead_reader.py", library, folder)
    size = left["stats_bytes"] or left["bytes"]
    per_tensor, whole = (b / steps / read["tensors"] for b in (size, left["bytes"]))
    print(
        f"| {library} | {steps} | {read['tensors']} | {per_tensor:.0f} | {whole:.0f} "
        f"| {read['seconds']:.3f} | {read['seconds'] / read['rows'] * 1e6:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter blocks; under two minutes")
    parser.add_argument("--smdebug-python", type=Path, default=REFERENCE, help="default: %(default)s")
    options = parser.parse_args()
    reference = options.smdebug_python if options.smdebug_python.exists() else None
    if reference is None:
        print(f"no smdebug at {options.smdebug_python}: scripts/smdebug_env.sh makes it", file=sys.stderr)
    rounds, seconds = (4, 0.8) if options.quick else (15, 2.5)
    python = Path(sys.executable)
    for workload, title in WORKLOADS.items():
        print(f"\n### {title}\n\n{HEADER}")
        compare(python, workload, "stepwatch", rounds, seconds, limits=not options.quick)
        if reference:
            compare(reference, workload, "smdebug", max(2, rounds // 4), seconds, limits=False)
    print("\n### On disk, and opened and read\n")
    print("| | steps | tensors | bytes per tensor and step | all files | seconds to read | us per row |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        measure_storage(python, "stepwatch", "narrow", 1000, Path(scratch, "ours"))
        if reference:
            steps = 50 if options.quick else 1000
            measure_storage(reference, "smdebug", "narrow", steps, Path(scratch, "reference"))


if __name__ == "__main__":
    main()
