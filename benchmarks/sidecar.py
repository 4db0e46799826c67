"""What it costs to watch a fleet, and how far the watcher lags behind it.

A generator plays back live runs: every rank gets a step a second, the same rows under hard links, as a writer leaves
them (a file of each table a flush, the committing ``steps`` last). The sidecar judges them by the recommended rules in
a process of its own. Measured over the last part of the run: its CPU time, its memory, and the lag from the moment a
step's file appears until a rule sees it. Then the fleet falls silent, and the cost of waiting is measured.

CPU time says much on a busy machine, lag says little there: the load average is printed. The generator has a process
and, where there are two, a core of its own; what it took, and how late it was, is printed apart.

With ``--stop`` a real job gets a NaN, and the time from that step to the end of the job is measured, its checkpoint
included.

    python benchmarks/sidecar.py --stop
    python benchmarks/sidecar.py --runs 20 --ranks 10 --seconds 30
    python benchmarks/sidecar.py --runs 200 --ranks 10 --seconds 120      # the target's size; wants an idle machine
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from stepwatch.probe.store.identity import process_identity
from stepwatch.probe.store.layout import Part, rank_folder, write_json
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.schema import FORMAT_VERSION, STAT_COLUMNS
from stepwatch.probe.store.tables import TableBuilder, write_parquet
from stepwatch.probe.store.tail import TailWriter

TENSORS = 24
SILENCE = 100  # seconds: a run is looked at the more rarely, the longer nothing has come of it
KEPT = 64  # files of a table that lie there at a time; a writer joins them as it goes


JOB = """
import sys, time, torch
from torch import nn
from stepwatch.probe import Hook
torch.set_num_threads(1)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

def checkpoint(step):
    torch.save(model.state_dict(), sys.argv[1] + ".pt")
    return sys.argv[1] + ".pt"

judged = {"rules": "recommended", "actions": ["stop"]} if sys.argv[3] else {}
hook = Hook(sys.argv[1], model=model, optimizer=optimizer, checkpoint=checkpoint, **judged)
for step in range(100000):
    inputs = torch.randn(8, 4)
    if step == int(sys.argv[2]):
        inputs[0, 0] = float("nan")
    optimizer.zero_grad()
    (model(inputs) ** 2).mean().backward()
    optimizer.step()
    time.sleep(0.01)
"""
BAD_STEP = 400
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def stop() -> float:
    """Seconds from a job's bad step to its end, by a sidecar."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--stop", "--once", "--state", f"{folder}/state"]
        watching = subprocess.Popen([sys.executable, "-m", "stepwatch.cli", "watch", folder, *options], **QUIET)
        seconds = run_until_stopped(f"{folder}/run", "")
        watching.wait()
        return seconds


def stop_inside() -> float:
    """Seconds from a job's bad step to its end, by the rules in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        return run_until_stopped(f"{folder}/run", "stop")


def run_until_stopped(run: str, actions: str) -> float:
    subprocess.run([sys.executable, "-c", JOB, run, str(BAD_STEP), actions], **QUIET, check=False)
    trace = Trace(run)
    rows = trace.table("steps", columns=["time_ns"], steps=(BAD_STEP, BAD_STEP + 1))
    end = trace.end(0)
    assert end is not None and end.status == "stopped" and Path(f"{run}.pt").exists()
    return float(end.time_ns - rows["time_ns"][0].as_py()) / 1e9


class Fleet:
    """Runs whose files appear together, once a second.

    Args:
        folder: where the runs are.
        runs: how many.
        ranks: of each.
    """

    def __init__(self, folder: Path, runs: int, ranks: int) -> None:
        self._source = folder / "source"
        self._source.mkdir()
        self._builder = TableBuilder(0)
        self._random = np.random.default_rng(0)
        self._names = tuple(f"gradient/Net_layer{n}.weight" for n in range(TENSORS))
        self._ranks: list[tuple[dict[str, Path], TailWriter]] = []
        identity = process_identity()
        for number in range(runs):
            run = folder / "runs" / f"run-{number:03d}"
            for part in ("ranks", "end", "control", "findings"):
                (run / part).mkdir(parents=True)
            for rank in range(ranks):
                folders = {table: rank_folder(run, table, rank) for table in ("stats", "scalars", "steps")}
                for table_folder in folders.values():
                    table_folder.mkdir(parents=True)
                attempt = {"attempt": 0, "start_step": 0, "started_ns": time.time_ns(), **identity}
                write_json(run / "ranks" / f"rank={rank:05d}.json", {"attempts": [attempt]})
                self._ranks.append((folders, TailWriter(run, rank, 0)))
            info = {"format_version": FORMAT_VERSION, "run_id": f"run-{number}", "job_name": run.name}
            content = {
                **info,
                "world_size": ranks,
                "host": "",
                "start_ns": 0,
                "command": [],
                "versions": {},
                "config": {},
            }
            write_json(run / "run.json", content)

    def step(self, number: int) -> None:
        """Every rank finishes a step."""
        stats = np.abs(self._random.normal(1.0, 0.1, (TENSORS, len(STAT_COLUMNS))))
        stats[:, :4] = [4096, 0, 0, 0]
        record = StepRecord(number, "TRAIN", number, time.time_ns(), self._names, stats, saved=True)
        record.scalars.append(("loss_output_0", float(2.0 / (1 + number / 50) + self._random.normal(0, 0.01))))
        record.timing["duration_ns"] = 1_000_000_000
        part = Part(0, number, number)
        tables = self._builder.build([record])
        for table, rows in tables.items():
            write_parquet(rows, self._source / table)
        part, old = Part(0, number, number).file_name, Part(0, number - KEPT, number - KEPT).file_name
        counts = {table: rows.num_rows for table, rows in tables.items()}
        for folders, tail in self._ranks:
            for table in tables:
                os.link(self._source / table, f"{folders[table]}/.next")
                os.replace(f"{folders[table]}/.next", f"{folders[table]}/{part}")
                if number >= KEPT:
                    os.unlink(f"{folders[table]}/{old}")
            tail.append(number, counts, [record])
        for table in tables:
            (self._source / table).unlink()


def watch(folder: Path) -> None:
    """The process that is measured: prints a line of JSON for every line that it is sent."""
    import threading

    from stepwatch.rules.catalogue import RuleSpec, configure
    from stepwatch.rules.finding import Coverage
    from stepwatch.rules.rule import Rule
    from stepwatch.rules.sidecar.changes import Changes
    from stepwatch.rules.sidecar.policy import Policy
    from stepwatch.rules.sidecar.sidecar import Sidecar, collect_garbage_seldom

    collect_garbage_seldom()
    lags: list[float] = []

    class Lag(Rule):
        """When each step is seen."""

        def observe(self, step: Any) -> tuple[()]:
            lags.append(time.time() - step.time_ns / 1e9)
            return ()

        def coverage(self) -> Coverage:
            return Coverage(decided=True)

    policy = Policy("benchmark", (*configure(["recommended"]), RuleSpec(Lag)))
    sidecar = Sidecar([folder], lambda trace: policy, folder.parent / "state")

    def answer() -> None:
        for _ in sys.stdin:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            content = {
                "cpu": usage.ru_utime + usage.ru_stime,
                "lags": lags.copy(),
                "mib": psutil.Process().memory_info().rss / 2**20,
            }
            lags.clear()
            print(json.dumps(content), flush=True)
        os._exit(0)

    threading.Thread(target=answer, daemon=True).start()
    with Changes([folder], 1.0) as changes:
        while True:
            began = time.monotonic()
            list(sidecar.look())
            changes.wait(time.monotonic() - began)


def keep_apart(watching: int) -> bool:
    """Give the generator a core and the sidecar the others; False where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return False
    os.sched_setaffinity(0, cores[:1])
    os.sched_setaffinity(watching, cores[1:])
    return True


def ask(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def idle_share(process: subprocess.Popen[str]) -> float:
    """Share of a core that the sidecar takes over ten seconds."""
    before, began = ask(process), time.monotonic()
    time.sleep(10)
    return float(ask(process)["cpu"] - before["cpu"]) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--stop", action="store_true")
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        watch(options.watch)
        return
    if options.stop:
        print(f"from the bad step to the end of the job, checkpoint included; load average {os.getloadavg()[0]:.1f}")
        for where, target, measured in (("in the process", 2, stop_inside), ("by the sidecar", 3, stop)):
            seconds = sorted(measured() for _ in range(5))
            print(f"{where:17s} {seconds[0]:.2f} to {seconds[-1]:.2f} s (target: under {target} s)")
        return
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), options.runs, options.ranks)
        fleet.step(0)
        command = [sys.executable, __file__, "--watch", f"{folder}/runs"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        apart = keep_apart(process.pid)
        number = 1
        settle = max(5, options.seconds // 3)
        before: dict[str, Any] = {}
        next_step = time.monotonic()
        began = next_step
        generating, latest = time.process_time(), 0.0
        while number <= options.seconds + settle:
            if number == settle:
                before, began = ask(process), time.monotonic()
                generating, latest = time.process_time(), 0.0
            fleet.step(number)
            number += 1
            next_step += 1.0
            latest = max(latest, time.monotonic() - next_step)
            time.sleep(max(0.0, next_step - time.monotonic()))
        played = time.monotonic() - began
        generated = (time.process_time() - generating) / played
        time.sleep(2)
        after = ask(process)
        while len(ask(process)["lags"]):  # until it has caught up
            time.sleep(3)
        soon = idle_share(process)
        time.sleep(SILENCE)
        idle = idle_share(process)
        process.kill()
        process.wait()
    lags = np.sort(after["lags"])
    ranks = options.runs * options.ranks
    cpu = (after["cpu"] - before["cpu"]) / played
    print(f"{options.runs} runs x {options.ranks} ranks, a step a second each; load average {os.getloadavg()[0]:.1f}")
    print(
        f"generator         {generated:.2f} cores, {'on a core of its own' if apart else 'beside it'}; at most "
        f"{max(latest, 0.0):.1f} s late"
    )
    print(f"steps judged      {len(lags)} of {ranks * (options.seconds + 1)} by the end")
    each = 1e6 * cpu * played / max(len(lags), 1)
    print(
        f"CPU               {cpu:.2f} cores (target: under 1), {each:.0f} us a step of a rank: "
        f"{2000 * each / 1e6:.2f} cores for 2,000"
    )
    print(
        f"lag               median {lags[len(lags) // 2]:.2f} s, 99th percentile {lags[int(0.99 * len(lags))]:.2f} s "
        "(target: under 2 s)"
    )
    print(f"memory            {after['mib']:.0f} MiB (target: under 1,024)")
    print(
        f"idle              {100 * idle:.2f} % of a core (target: under 1 %) when nothing has come for "
        f"{SILENCE} s; {100 * soon:.2f} % at first"
    )


if __name__ == "__main__":
    main()
