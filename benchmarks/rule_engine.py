"""How long the recommended rules take over a long run of many tensors: afterwards, and step by step.

    python benchmarks/rule_engine.py [--steps 10000] [--layers 240] [--keep FOLDER]

The run is made up but whole: weights, biases, their gradients and ReLU outputs of a network of that many layers at
every step, with losses, learning rates, class counts and unit activity, written by the same writer as a real one.
Nothing is wrong with it, so that no rule may stop early. Measured in processes of their own: "afterwards", over the
Parquet files, for the whole run and its first half (twice the steps should take twice the time); "live", the time for
which one step occupies the rules, in the training process (steps from memory) and beside it (steps from files).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import EVAL_MODE_SCALAR, KEPT_GRADIENTS_SCALAR
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import configure
from stepwatch.rules.engine import Engine
from stepwatch.rules.replay import LiveAnalysis, analyze
from stepwatch.rules.step import StepBuilder

CLASSES = 10
RELUS = 40


def tensors(layers: int) -> list[TensorInfo]:
    """Four tensors per layer, and ReLU outputs spread over the depth."""
    found = []
    for layer in range(layers):
        module = f"blocks.{layer // 6}.fc{layer % 6}"
        weight, bias = f"Net_{module}.weight", f"Net_{module}.bias"
        place = {"module": module, "module_type": "Linear", "order": layer}
        found += [
            TensorInfo(weight, (512, 512), "float32", ("weights",), **place),  # type: ignore[arg-type]
            TensorInfo(bias, (512,), "float32", ("biases",), **place),  # type: ignore[arg-type]
            TensorInfo(f"gradient/{weight}", (512, 512), "float32", ("gradients",), **place),  # type: ignore[arg-type]
            TensorInfo(f"gradient/{bias}", (512,), "float32", ("gradients",), **place),  # type: ignore[arg-type]
        ]
    every = max(1, layers // RELUS)
    for layer in range(0, layers, every):
        name = f"blocks.{layer // 6}.relu{layer % 6}_output_0"
        place = {"module": name.removesuffix("_output_0"), "module_type": "ReLU", "order": layer}
        found.append(TensorInfo(name, (32, 512), "float32", ("activations", "relu_output"), **place))  # type: ignore[arg-type]
    return found[: 4 * layers + RELUS]


def records(infos: list[TensorInfo], steps: int) -> Iterator[StepRecord]:
    """A run that learns: noisy statistics around slow trends, an evaluation every hundredth step."""
    rng = np.random.default_rng(0)
    names = tuple(info.name for info in infos)
    numel = np.array([float(np.prod(info.shape)) for info in infos])
    std = np.array([0.02 if "gradient" not in info.name else 1e-3 for info in infos])
    relus = [name for name in names if "relu" in name]
    active = np.array([512.0, 100.0, 20.0, 5.0])
    evals = 0
    for step in range(steps):
        spread = std * np.exp(0.1 * rng.standard_normal(len(infos))) * (1 + step / steps)
        matrix = np.zeros((len(infos), 11))
        matrix[:, 0] = numel
        matrix[:, 3] = rng.integers(0, 3, len(infos))
        matrix[:, 4], matrix[:, 5] = -4 * spread, 4.1 * spread
        matrix[:, 6], matrix[:, 7] = 0.01 * spread, spread
        matrix[:, 8], matrix[:, 9], matrix[:, 10] = 0.8 * numel * spread, np.sqrt(numel) * spread, 4.1 * spread
        labels = rng.multinomial(64, np.full(CLASSES, 1 / CLASSES)).astype(float)
        loss = 0.3 + 2.0 * np.exp(-3 * step / steps) + 0.1 * rng.standard_normal()
        yield StepRecord(
            step,
            "TRAIN",
            step,
            1_700_000_000_000_000_000 + step * 50_000_000,
            names,
            matrix,
            derived=[
                *((name, "unit_activity", active) for name in relus),
                ("CrossEntropyLoss_input_1", "class_counts", np.concatenate([labels, np.floor(0.9 * labels)])),
            ],
            scalars=[
                ("CrossEntropyLoss_output_0", float(loss)),
                ("learning_rate/0", 1e-3),
                (KEPT_GRADIENTS_SCALAR, 0.0),
                (EVAL_MODE_SCALAR, 0.0),
            ],
            timing={"duration_ns": 50_000_000, "forward_ns": 15_000_000},
            saved=True,
        )
        if step % 100 == 99:
            held_out = 0.35 + 2.0 * np.exp(-3 * step / steps) + 0.01 * rng.standard_normal()
            scalars = [("CrossEntropyLoss_output_0", float(held_out))]
            yield StepRecord(step, "EVAL", evals, 1_700_000_000_000_000_000, scalars=scalars)
            evals += 1


def write(run: Path, layers: int, steps: int) -> None:
    """Write the run with the writer that a training process has."""
    infos = tensors(layers)
    writer = TraceWriter(run, flush_seconds=3600, queue_bytes=1 << 40)
    for info in infos:
        writer.describe(info)
    for number, record in enumerate(records(infos, steps)):
        writer.submit(record)
        if number % 200 == 199:
            writer.flush()
    writer.close("finished")


def judge_afterwards(run: Path) -> dict[str, float]:
    """Seconds and memory of an analysis of the whole run, in this process."""
    before = peak_mib()
    began, cpu = time.perf_counter(), time.process_time()
    analysis = analyze(Trace(run), configure(None))
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "MiB": peak_mib(),
        "MiB before": before,
        "findings": len(analysis.findings),
    }


def peak_mib() -> float:
    """The most memory that this process has held (``ru_maxrss`` would count its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def judge_in_process(layers: int, steps: int) -> dict[str, float]:
    """Milliseconds per step for rules that get each step from memory."""
    infos = tensors(layers)
    by_name = {info.name: info for info in infos}
    engine, builder = Engine(configure(None)), StepBuilder(0, by_name.__getitem__)
    clock = Clock()
    for record in records(infos, steps):
        with clock:
            engine.feed(builder.from_record(record))
    return clock.summary()


def judge_beside(run: Path, layers: int, steps: int) -> dict[str, float]:
    """Milliseconds per step for rules that read what a writer flushes after every step."""
    infos = tensors(layers)
    writer = TraceWriter(run, flush_seconds=3600)
    for info in infos:
        writer.describe(info)
    writer.flush()
    live = LiveAnalysis(Trace(run), configure(None))
    clock = Clock()
    for record in records(infos, steps):
        writer.submit(record)
        writer.flush()
        with clock:
            live.poll()
    writer.close("finished")
    return clock.summary()


class Clock:
    """Times many short pieces of work of this thread: by the wall, and on the processor (other jobs do not count)."""

    def __init__(self) -> None:
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._wall.append(1e3 * (time.perf_counter() - self._began[0]))
        self._cpu.append(1e3 * (time.thread_time() - self._began[1]))

    def summary(self) -> dict[str, float]:
        """Medians and the 99th percentile, in milliseconds."""
        return {
            "wall": float(np.median(self._wall)),
            "cpu": float(np.median(self._cpu)),
            "p99": float(np.percentile(self._cpu, 99)),
            "last tenth": float(np.median(self._cpu[-len(self._cpu) // 10 :])),
        }


def apart(*arguments: object) -> dict[str, float]:
    """Run one of the measurements in a process of its own, on one core."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(["taskset", "-c", "0", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=240, help="four tensors each; 40 ReLU outputs beside")
    parser.add_argument("--keep", type=Path, help="where the run is written, and left; read where it is there")
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        what, *rest = arguments.only
        if what == "afterwards":
            result = judge_afterwards(Path(rest[0]))
        elif what == "process":
            result = judge_in_process(arguments.layers, arguments.steps)
        else:
            result = judge_beside(Path(rest[0]), arguments.layers, arguments.steps)
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        count = len(tensors(arguments.layers))
        for steps in (arguments.steps // 2, arguments.steps):
            run = folder / f"run-{steps}"
            if not run.exists():
                write(run, arguments.layers, steps)
            taken = apart("--only", "afterwards", run)
            print(
                f"afterwards, {count} tensors x {steps} steps: {taken['seconds']:.1f} s ({taken['cpu']:.1f} s of CPU), "
                f"at most {taken['MiB']:.0f} MiB ({taken['MiB before']:.0f} before), {taken['findings']:.0f} findings",
                flush=True,
            )
        size = ["--layers", arguments.layers, "--steps", min(arguments.steps, 2000)]
        for place, what in (
            ("in the training process", ["process"]),
            ("beside it", ["beside", Path(temporary) / "live"]),
        ):
            taken = apart(*size, "--only", *what)
            print(
                f"live, {place}, {count} tensors: {taken['cpu']:.2f} ms of CPU per step (99 % below "
                f"{taken['p99']:.2f}; {taken['last tenth']:.2f} in the last tenth of {size[-1]} steps), "
                f"{taken['wall']:.2f} ms by the wall",
                flush=True,
            )


if __name__ == "__main__":
    main()
