"""What recording costs a training step, beside no hook, norms by hand and smdebug at the same content.

Each way of watching runs the same job in a process of its own. The processes take turns: in every round
each trains for one block while the others are stopped (SIGSTOP), so that what one does in the background is
charged to its own blocks, and all see the same machine. The first number is the median over rounds of the
mean step of a block; the ratio is the median over rounds of block beside block of the same round.

    python benchmarks/hook_overhead.py --quick                     # under two minutes
    python benchmarks/hook_overhead.py --smdebug-python PATH       # where scripts/smdebug_env.sh was not used
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
REFERENCE = HERE.parent / ".smdebug-venv" / "bin" / "python"

WORKLOADS = {
    "wide": "MLP of six 512x512 layers, batch 64, Adam: 25 tensors, 12.6 MB of weights and gradients",
    "narrow": "MLP of twelve 64-wide layers and a head of 10, batch 64, Adam: 53 tensors",
}
TENSORS = {"wide": 25, "narrow": 53}
OURS = (
    "stepwatch, every step",
    "stepwatch, every step, with ReLU outputs",
    "stepwatch, default budget",
    "stepwatch, nothing saved",
    "two norms per tensor by hand",
)
REFERENCES = ("smdebug, every step", "smdebug, every step, with ReLU outputs")


class Arm:
    """A worker process, stopped but while it answers."""

    def __init__(self, python: Path, workload: str, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        command = [str(python), str(HERE / "overhead_worker.py"), workload, name, str(folder)]
        environment = {**os.environ, "PYTHONPATH": ""}
        self._log = folder.with_name(f"{folder.name}.log")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise SystemExit(f"{self.name}: the worker failed\n{self._log.read_text()[-2000:]}")
        self._process.send_signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def end(self) -> dict[str, Any]:
        reply = self.ask(do="close")
        self._process.send_signal(signal.SIGCONT)
        self._process.communicate()
        return reply


def compare(workload: str, arms: list[Arm], rounds: int, seconds: float) -> None:
    """Print the table of one workload."""
    for arm in arms:
        arm.ask(do="steps", count=5 if "smdebug" in arm.name else 60)
    means: dict[str, list[float]] = {arm.name: [] for arm in arms}
    typical: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for turn in range(rounds):
        for arm in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
            times = arm.ask(do="block", seconds=seconds)["times"]
            means[arm.name].append(sum(times) / len(times) / 1000)
            typical[arm.name].append(median(times) / 1000)
    print(f"\n### {WORKLOADS[workload]}\n")
    print("| | step, us | hook, us | ratio | middle step, us | hook, us | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for arm in arms:
        cells = []
        for per_round in (means, typical):
            plain, mine = per_round[arms[0].name], per_round[arm.name]
            ratio = median(m / p for m, p in zip(mine, plain, strict=True))
            extra = median(m - p for m, p in zip(mine, plain, strict=True))
            cells += [f"{median(mine):.0f}", f"{extra:.0f}", f"x{ratio:.3f}"]
        print(f"| {arm.name} | {' | '.join(cells)} |", flush=True)


def measure_storage(python: Path, library: str, workload: str, steps: int, folder: Path) -> None:
    """Print the row of what one library leaves on disk, and how long it takes to read."""
    arm = Arm(python, workload, f"{library}, every step", folder)
    arm.ask(do="steps", count=steps)
    left = arm.end()
    command = [str(python), str(HERE / "overhead_reader.py"), library, str(folder)]
    read = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
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
    parser.add_argument("--workload", choices=list(WORKLOADS), help="only this one")
    options = parser.parse_args()
    reference = options.smdebug_python if options.smdebug_python.exists() else None
    if reference is None:
        print(f"no smdebug at {options.smdebug_python}: scripts/smdebug_env.sh makes it", file=sys.stderr)
    rounds, seconds = (5, 0.5) if options.quick else (15, 1.5)
    with tempfile.TemporaryDirectory() as scratch:
        for workload in [options.workload] if options.workload else WORKLOADS:
            arms = [
                Arm(Path(sys.executable), workload, name, Path(scratch, workload, str(index)))
                for index, name in enumerate(("no hook", *OURS))
            ]
            if reference:
                folder = Path(scratch, workload)
                arms += [Arm(reference, workload, name, folder / name) for name in REFERENCES]
            compare(workload, arms, rounds, seconds)
            for arm in arms:
                arm.end()
        print("\n### On disk, and opened and read\n")
        print("| | steps | tensors | bytes per tensor and step | all files | seconds to read | us per row |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        measure_storage(Path(sys.executable), "stepwatch", "narrow", 1000, Path(scratch, "ours"))
        if reference:
            steps = 100 if options.quick else 1000
            measure_storage(reference, "smdebug", "narrow", steps, Path(scratch, "reference"))


if __name__ == "__main__":
    main()
