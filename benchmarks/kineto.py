"""A trace of torch.profiler of 200 MB: read and summarised by Stepwatch, and by HTA on the same file in the same run.

    python -m venv build/hta && build/hta/bin/pip install HolisticTraceAnalysis
    python benchmarks/kineto.py --hta build/hta/bin/python
    python benchmarks/kineto.py --trace trace.json      # a trace of one's own

HTA (https://github.com/facebookresearch/HolisticTraceAnalysis) needs an environment of its own. Each reads the file and
computes the temporal breakdown, the overlap of communication and computation, the kernel breakdown, idle times by
cause and queue lengths, in a process of its own; ours also writes the run. The trace is made up, as of a data-parallel
job on a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LAYERS = 96
BYTES_PER_STEP = 290_000

OURS = """
import sys
from pathlib import Path
from stepwatch.probe.store.kineto.importing import import_kineto
(summary,) = import_kineto([Path(sys.argv[1])], Path(sys.argv[2]))
(use,) = summary.uses
answers = {
    "idle": 100 * use.idle_ns / use.span_ns,
    "computing": 100 * use.computation_ns / use.span_ns,
    "hidden": 100 * use.hidden_ns / max(use.collectives_ns, 1),
    "longest queue": max((queue.longest for queue in summary.queues), default=0),
}
"""

THEIRS = """
import logging, sys
logging.disable(logging.WARNING)
from hta.trace_analysis import TraceAnalysis
analysis = TraceAnalysis(trace_files={0: sys.argv[1]}, trace_dir="/")
times = analysis.get_temporal_breakdown(visualize=False)
overlap = analysis.get_comm_comp_overlap(visualize=False)
analysis.get_gpu_kernel_breakdown(visualize=False)
analysis.get_idle_time_breakdown(ranks=[0], visualize=False)
queues = analysis.get_queue_length_summary(ranks=[0])
answers = {
    "idle": float(times["idle_time_pctg"][0]),
    "computing": float(times["compute_time_pctg"][0]),
    "hidden": float(overlap["comp_comm_overlap_pctg"][0]),
    "longest queue": int(queues["queue_length"]["max"].max()),
}
"""

TAIL = """
import json, resource
own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
cpu = sum(usage.ru_utime + usage.ru_stime for usage in (own, children))
print(json.dumps({"cpu": cpu, "peak": own.ru_maxrss / 1024, **answers}))
"""


def measure(python: str, code: str, *arguments: str) -> dict[str, Any]:
    """Seconds, processor seconds, peak memory in MB, and the answers."""
    began = time.perf_counter()
    done = subprocess.run([python, "-c", code + TAIL, *arguments], capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{python}: {done.stderr.strip().splitlines()[-1]}")
    return {"seconds": took, **json.loads(done.stdout.strip().splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the made-up trace")
    parser.add_argument("--trace", type=Path, help="a trace of one's own instead")
    parser.add_argument("--hta", help="the interpreter of an environment with HTA; without it only ours is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = options.trace
        if trace is None:
            sys.path.insert(0, str(ROOT))
            from tests.deep.made_up import write

            trace = write(Path(folder) / "trace.json", options.megabytes * 1_000_000 // BYTES_PER_STEP, LAYERS)
        print(f"{trace.stat().st_size / 1e6:.0f} MB, {os.cpu_count()} cores")
        print("| | seconds | processor seconds | peak memory, MB | idle % | computing % | hidden % | longest queue |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        subjects = [("Stepwatch", sys.executable, OURS, [f"{folder}/run"])]
        if options.hta:
            subjects.append(("HTA", options.hta, THEIRS, []))
        for name, python, code, arguments in subjects:
            found = measure(python, code, str(trace.resolve()), *arguments)
            numbers = [f"{found[key]:.1f}" for key in ("seconds", "cpu")]
            numbers += [f"{found['peak']:.0f}", *(f"{found[key]:.1f}" for key in ("idle", "computing", "hidden"))]
            print(f"| {name} | {' | '.join(numbers)} | {found['longest queue']} |", flush=True)


if __name__ == "__main__":
    main()
