"""What profiling costs, how right its times are, and how large a day of it is.

    python benchmarks/profiler.py                 # everything; the simulated day takes minutes
    python benchmarks/profiler.py --only sampler timeline phases
    python benchmarks/profiler.py --hours 2       # a shorter day, its size scaled up

Without GPUs the devices of the simulated day are those of the stand-in library of the tests, which needs a C compiler.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.sampler import Pace, SystemSampler, open_sources
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.probe.timeline import StepClock

ROOT = Path(__file__).parents[1]
STANDIN = ROOT / "tests" / "probe" / "nvml_standin.c"

Row = tuple[str, str, str, bool]
"""What was measured, the figure, the target, whether it is met."""


def sampler(seconds: float) -> list[Row]:
    """CPU time of the sampler's thread at two samples a second."""
    rows: list[object] = []
    subject = SystemSampler(0.5, rows.extend, lambda: None, volumes=[ROOT])
    subject.start()
    time.sleep(5)
    before, began = time.process_time(), time.monotonic()
    time.sleep(seconds)  # nothing else runs in this process
    share = (time.process_time() - before) / (time.monotonic() - began)
    subject.stop()
    return [("sampler at 2 Hz, share of a core", f"{share:.3%}", "0.5 %", share <= 0.005)]


def timeline(steps: int) -> list[Row]:
    """Time of the training thread for all that the timeline does in a step, loader and two copies included.

    Processor time: on a busy machine the wall's is that of the neighbours.
    """
    batch = torch.zeros(8)

    class Nothing(Dataset[int]):
        def __len__(self) -> int:
            return steps

        def __getitem__(self, index: int) -> int:
            return index

    def loop() -> float:
        began = time.thread_time()
        for _ in DataLoader(Nothing(), batch_size=None):
            batch.to("meta")
            batch.to("meta")
        return time.thread_time() - began

    def phases() -> float:
        clock = StepClock()
        began = time.thread_time()
        for _ in range(steps):
            for phase in ("forward_ns", "backward_ns", "optimizer_ns"):
                clock.begin(phase)
                clock.end(phase)
            clock.hook_ns += 1
            clock.finish()
            clock.restart()
        return time.thread_time() - began

    plain = min(loop() for _ in range(5))
    with tempfile.TemporaryDirectory() as folder, Hook(f"{folder}/run", system_interval=0):
        watched = min(loop() for _ in range(5))
    own = min(phases() for _ in range(5))
    microseconds = 1e6 * (watched - plain + own) / steps
    return [("step timeline, microseconds a step", f"{microseconds:.1f}", "30", microseconds <= 30)]


def phases(steps: int) -> list[Row]:
    """Phases of the same steps by the hook and by torch.profiler."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # times of several threads on a busy machine are those of their neighbours
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(512, 512), nn.ReLU())))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(256, 512)
    with tempfile.TemporaryDirectory() as folder:
        # Of the optimizer's step the part between the hook's own callbacks.
        inside = torch.profiler.record_function("optimizer")
        optimizer.register_step_post_hook(lambda *_: inside.__exit__(None, None, None))
        hook = Hook(
            f"{folder}/run",
            model=model,
            optimizer=optimizer,
            save_config=SaveConfig(save_interval=10**9),
            system_interval=0,
        )
        optimizer.register_step_pre_hook(lambda *_: inside.__enter__() and None)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(steps):
                optimizer.zero_grad()
                with torch.profiler.record_function("forward"):
                    output = model(x)
                loss = output.square().mean()
                with torch.profiler.record_function("backward"):
                    loss.backward()
                optimizer.step()
        hook.close()
        recorded = Trace(f"{folder}/run").table("steps").to_pandas()
    by_name: dict[str, list[float]] = {}
    for event in profiler.events():
        by_name.setdefault(event.name, []).append(event.cpu_time_total)
    rows: list[Row] = []
    for phase in ("forward", "backward", "optimizer"):
        times = by_name[phase]
        ours = recorded[f"{phase}_ns"].to_numpy()[5:] / 1e3
        off = statistics.median(ours) / statistics.median(times[5:]) - 1
        what = f"{phase} against torch.profiler, medians of {steps - 5} steps"
        rows.append((what, f"{off:+.1%}", "5 %", abs(off) <= 0.05))
    return rows


def day(hours: float) -> list[Row]:
    """Size of a simulated day with eight GPUs, and the time that its report takes."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", f"{folder}/libnvidia-ml.so.1", str(STANDIN)]
        subprocess.run(command, check=True)
        run = Path(folder) / "run"
        environment = {**os.environ, "LD_LIBRARY_PATH": folder}
        simulate = [sys.executable, __file__, "--simulate", str(run), "--hours", str(hours)]
        subprocess.run(simulate, check=True, env=environment)
        size = sum(file.stat().st_size for file in (run / "system").rglob("*.parquet"))
        rows = Trace(run).system().num_rows
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "stepwatch.cli", "report", str(run)], check=True, stdout=subprocess.DEVNULL
        )
        took = time.perf_counter() - began
    megabytes = size * 24 / hours / 1e6
    return [
        (
            f"a day of samples with 8 GPUs ({hours:g} h simulated, {rows:,} readings)",
            f"{megabytes:.1f} MB",
            "40 MB",
            megabytes <= 40,
        ),
        (f"its report ({hours:g} h)", f"{took:.1f} s", "10 s", took <= 10),
    ]


def simulate(run: Path, hours: float) -> None:
    """Sample this machine and the stand-in's devices as fast as it goes, as if twice a second; a step a second."""
    writer = TraceWriter(run, flush_seconds=10**6, run_info={"start_ns": time.time_ns()})
    pace = Pace(open_sources([run]), 0.5)
    pace.periods = lambda: [max(source.period, 0.5) for source in pace._sources]  # type: ignore[method-assign]
    start = time.time_ns()
    for number in range(int(hours * 7200)):
        now = start + number * 500_000_000
        writer.submit_system([(now, *row) for row in pace.read(1000 + number * 0.5)])
        if number % 2 == 0:
            step = number // 2
            timing = {"duration_ns": 10**9, "data_ns": 10**8, "forward_ns": 3 * 10**8, "backward_ns": 5 * 10**8}
            writer.submit(
                StepRecord(step, "TRAIN", step, now, timing=timing, scalars=[("loss_output_0", 1 / (1 + step))])
            )
        if number % 120 == 119:
            writer.flush()
    writer.close("finished")


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "sampler": lambda options: sampler(options.seconds),
    "timeline": lambda options: timeline(20_000),
    "phases": lambda options: phases(60),
    "day": lambda options: day(options.hours),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=30, help="how long the sampler is watched")
    parser.add_argument("--hours", type=float, default=24, help="length of the simulated day")
    parser.add_argument("--simulate", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.simulate:
        simulate(options.simulate, options.hours)
        return
    print(f"torch {torch.__version__}, {os.cpu_count()} cores")
    print("| measured | figure | target | |\n|---|---:|---:|---|")
    for name in options.only:
        for what, figure, target, met in PARTS[name](options):
            print(f"| {what} | {figure} | {target} | {'met' if met else 'not met'} |", flush=True)


if __name__ == "__main__":
    main()
