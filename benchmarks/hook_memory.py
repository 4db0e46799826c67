"""Whether a hook keeps memory, and how much of one core its writer takes, over 10,000 steps saved at every step.

python benchmarks/hook_memory.py [--steps 10000]
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading
import time

import psutil
import torch
from overhead_worker import Job, every_step


def writer_seconds() -> float:
    """Processor time of all threads but this one."""
    mine = threading.get_native_id()
    return sum(thread.user_time + thread.system_time for thread in psutil.Process().threads() if thread.id != mine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)  # so that what other threads take is the hook's
    job, process = Job("narrow"), psutil.Process(os.getpid())
    with tempfile.TemporaryDirectory() as folder:
        close = every_step(job, folder)
        print("| steps | resident, MB | tensors alive |\n|---:|---:|---:|")
        began = busy = 0.0
        for step in range(steps + 1):
            if step % (steps // 10) == 0:
                gc.collect()
                alive = sum(isinstance(each, torch.Tensor) for each in gc.get_objects())
                print(f"| {step} | {process.memory_info().rss / 1e6:.1f} | {alive} |", flush=True)
            if step == steps // 10:
                began, busy = time.perf_counter(), writer_seconds()
            job.step()
        elapsed, spent = time.perf_counter() - began, writer_seconds() - busy
        rate = 0.9 * steps / elapsed
        print(f"\nother threads: {100 * spent / elapsed:.2f} % of a core at {rate:.0f} steps a second with 53 tensors,")
        print(f"which is {spent / (0.9 * steps) * 1e6:.0f} us a step, {100 * spent / (0.9 * steps) * 100:.2f} % at 100")
        close()


if __name__ == "__main__":
    main()
