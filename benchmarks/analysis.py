"""What it takes to look at runs: a large one, and a thousand small ones.

``python benchmarks/analysis.py [--quick] [--keep DIR]``. Every measurement is of the command as a user types it, in a
process of its own, with its start: the median of three, and the largest resident memory. ``--quick`` makes everything
ten times smaller. The traces are random numbers written by the real writer.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.writer import TraceWriter

STEPWATCH = [sys.executable, "-m", "stepwatch.cli"]
QUERY = "SELECT name, avg(l2) AS mean, max(abs_max) AS largest FROM stats GROUP BY name ORDER BY largest DESC"


@dataclass
class Measured:
    seconds: float
    processor_seconds: float
    megabytes: float
    output: str


def write_run(run: Path, tensors: int, steps: int, seed: int, loss_breaks: bool = False) -> None:
    rng = np.random.default_rng(seed)
    writer = TraceWriter(run, flush_bytes=64 << 20, queue_bytes=512 << 20, flush_seconds=60)
    names = tuple(f"{'gradient/' if i % 2 else ''}Net_layers.{i // 2}.weight" for i in range(tensors))
    for i, name in enumerate(names):
        kind = "gradients" if i % 2 else "weights"
        writer.describe(TensorInfo(name, (64, 64), "float32", (kind,), f"layers.{i // 2}", "Linear", i // 2))
    base = np.abs(rng.normal(size=(tensors, len(STAT_COLUMNS)))) + 1
    base[:, :4] = 4096, 0, 0, 3
    for step in range(steps):
        matrix = base * (1 + 0.01 * rng.normal(size=base.shape))
        matrix[:, :4] = base[:, :4]
        loss = 2.3 / (1 + 20 * step / steps) + 0.01 * rng.normal()
        scalars = [("CrossEntropyLoss_output_0", float("nan") if loss_breaks and step > steps / 2 else loss)]
        timing = {"duration_ns": 10**7, "forward_ns": 3 * 10**6, "backward_ns": 5 * 10**6, "hook_ns": 10**5}
        record = StepRecord(step, "TRAIN", step, step * 10**7, names, matrix, scalars=scalars, timing=timing)
        record.saved = True
        while not writer.submit(record):
            time.sleep(0.01)
    writer.close("finished", last_step=steps)


def make(folder: Path, tensors: int, steps: int, runs: int) -> None:
    for each in (folder / "large", folder / "again"):
        if not (each / "end").is_dir():
            write_run(each, tensors, steps, seed=0)
    for number in range(runs):
        run = folder / "fleet" / f"run-{number:04d}"
        if not (run / "end").is_dir():
            write_run(run, 20, 200, seed=number, loss_breaks=number % 10 == 0)


def measure(*arguments: object, repeats: int = 3) -> Measured:
    times, work, peak, output = [], [], 0.0, ""
    for _ in range(repeats):
        began = time.perf_counter()
        with tempfile.TemporaryFile() as out:
            process = subprocess.Popen([*STEPWATCH, *map(str, arguments)], stdout=out, stderr=subprocess.PIPE)
            _, status, usage = os.wait4(process.pid, 0)
            times.append(time.perf_counter() - began)
            work.append(usage.ru_utime + usage.ru_stime)
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, 1):
                assert process.stderr is not None
                raise RuntimeError(f"{arguments}: exit status {code}: {process.stderr.read().decode()}")
            process.returncode = code
            out.seek(0)
            output = out.read().decode()
        peak = max(peak, usage.ru_maxrss / 1024)
    return Measured(statistics.median(times), statistics.median(work), peak, output)


@dataclass
class Target:
    """The most that something may take: seconds, MiB, bytes of what it writes."""

    seconds: float
    megabytes: float = math.inf
    bytes: float = math.inf

    def __str__(self) -> str:
        limits = [f"{self.seconds:g} s"]
        limits += [f"{self.megabytes:g} MiB"] if math.isfinite(self.megabytes) else []
        limits += [f"{self.bytes / 1e6:g} MB"] if math.isfinite(self.bytes) else []
        return ", ".join(limits)

    def verdict(self, found: Measured, size: float = 0) -> str:
        """Whether it was held; on a busy machine, which time alone does not tell, by processor time."""
        if found.megabytes > self.megabytes or size > self.bytes or found.processor_seconds > self.seconds:
            return "not met"
        return "met" if found.seconds <= self.seconds else "met in processor time, the machine is busy"


def row(what: str, found: Measured, target: str = "", verdict: str = "", more: str = "") -> None:
    times = f"{found.seconds:.2f} s | {found.processor_seconds:.2f} s"
    print(f"| {what} | {times} | {found.megabytes:.0f} MiB | {more} | {target} | {verdict} |", flush=True)


def against(what: str, target: Target, found: Measured, size: float = 0) -> None:
    more = f"{size / 1e6:.1f} MB" if size else ""
    row(what, found, str(target), target.verdict(found, size), more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", type=Path, help="where the traces are made, and found again")
    arguments = parser.parse_args()
    scale = 10 if arguments.quick else 1
    tensors, steps, runs = 1000, 10_000 // scale, 1000 // scale
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        large, fleet = folder / "large", folder / "fleet"
        # In a process of its own: the largest memory of a child counts that of the parent it was forked from.
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(folder, tensors, steps, runs))
        maker.start()
        maker.join()
        print(f"{tensors} tensors x {steps} steps; {runs} runs of 20 tensors x 200 steps;")
        print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}\n")
        print("| what | time | processor time | memory | | target | |\n|---|---|---|---|---|---|---|")
        against("stepwatch --help", Target(0.25), measure("--help"))
        against("show", Target(0.5), measure("show", large))
        against("sql, an aggregate over all rows", Target(1), measure("sql", QUERY, large))
        page = folder / "report.html"
        found = measure("report", large, "-o", page, repeats=1)
        against("report", Target(15, 1024, 5e6), found, page.stat().st_size)
        row("analyze", measure("analyze", large, repeats=1))
        row("compare, with itself again", measure("compare", large, folder / "again", repeats=1))
        alone = measure("analyze", fleet, "--processes", 1, repeats=1)
        together = measure("analyze", fleet, "--processes", 2, repeats=1)
        row(f"analyze {runs} runs, one process", alone)
        faster, at_best = alone.seconds / together.seconds, 2 * alone.processor_seconds / together.processor_seconds
        verdict = "met" if faster >= 1.7 else "not met; a busy machine shows less" if at_best >= 1.7 else "not met"
        more = f"{faster:.2f} x, at best {at_best:.2f} x by processor time"
        row(f"analyze {runs} runs, two processes", together, "1.7 x", verdict, more)
        assert alone.output == together.output, "the verdicts must not depend on the number of processes"


if __name__ == "__main__":
    main()
