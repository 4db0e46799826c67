"""A sidecar that is killed again and again misses no finding, repeats no action and touches no innocent process.

STEPWATCH_CHAOS_KILLS sets how often it is killed; the suite does so a few times, `benchmarks/chaos.sh` 200 times.
Beside being killed it finds disks full (no file may grow), directories that it may not write, and clocks that are set
while it runs.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from stepwatch.probe.store.reader import Trace

KILLS = int(os.environ.get("STEPWATCH_CHAOS_KILLS", "3"))

RULES = """
from stepwatch.rules.finding import Coverage, Severity
from stepwatch.rules.rule import Rule

class Spike(Rule):
    '''A loss above 100; an error above 1000.'''
    def observe(self, step):
        for name, value in step.scalars.items():
            if value > 100:
                severity = Severity.ERROR if value > 1000 else Severity.WARNING
                yield self.finding(step, first_step=step.step, tensors=[name], value=value, threshold=100,
                                   message=f"{value:g}", suggestion="nothing", severity=severity)
    def coverage(self):
        return Coverage(decided=True)
"""

JOB = """
import random, sys, time
from pathlib import Path
from stepwatch.probe.store.control import acknowledge, read_request
from tests.sidecar.conftest import Job
path, kind, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
chance = random.Random(sys.argv[1])
end = time.monotonic() + seconds
asked = set()
for attempt in range(2):
    job = Job(path, start_step=attempt * 100000)
    until = end if attempt or kind != "restarted" else end - seconds / 2
    while time.monotonic() < until + (300 if kind in ("doomed", "deaf") else 0):
        spike = kind != "healthy" and chance.random() < 0.1
        doomed = kind in ("doomed", "deaf") and time.monotonic() > end - 0.6 * seconds
        job.train(1.0 if not spike else 5000.0 if doomed else 200.0)
        request = read_request(path)
        if request is not None and kind == "doomed":
            acknowledge(path, 0, request.id, step=1, checkpoint="c.pt")
            job.end("stopped")
            sys.exit(7)
        if request is not None and request.id not in asked:
            asked.add(request.id)
            (path / f"asked-{len(asked)}").touch()
        time.sleep(0.05)
    job.end()
    if kind != "restarted":
        break
"""

# Set once when a process starts, and once more while it runs.
CLOCK = """
import os, time
shift, later = map(float, os.environ.get("CLOCK_SHIFT", "0 0").split())
if shift or later:
    now, now_ns, began = time.time, time.time_ns, time.monotonic()
    moved = lambda: later if time.monotonic() - began > 2 else shift
    time.time, time.time_ns = lambda: now() + moved(), lambda: now_ns() + int(moved() * 1e9)
"""
CLOCKS = (0, 0, -86400, 3600)

KINDS = ("healthy", "noisy", "noisy", "restarted", "doomed", "deaf")


class Receiver(ThreadingHTTPServer):
    """Fails now and then, after having taken the message."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages: dict[str, dict[str, Any]] = {}
        self.chance = random.Random(1)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.messages[body["id"]] = body  # one that comes again has the same id
        self.send_response(503 if self.server.chance.random() < 0.2 else 200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def in_the_way(path: Path) -> None:
    """Nothing can be written there for a moment, as on a full disk; what was written stays."""
    if not path.is_dir():
        return
    aside = path.with_name(f".{path.name}-aside")
    try:
        path.rename(aside)
        path.write_text("")
        time.sleep(0.3)
        path.unlink()
    finally:
        if not path.exists():
            aside.rename(path)
        else:  # the sidecar was quicker
            for entry in path.iterdir():
                shutil.move(entry, aside / entry.name)
            path.rmdir()
            aside.rename(path)


def forbidden(path: Path) -> None:
    """Nobody but root may write there for a moment."""
    if path.is_dir():
        path.chmod(0o555)
        time.sleep(0.3)
        path.chmod(0o755)


def full_disk() -> None:
    """In a process that is to begin: no file of its may grow."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def spikes(runs: Path) -> Counter[tuple[str, int]]:
    """What is to be found: the steps whose loss is above 100."""
    found: Counter[tuple[str, int]] = Counter()
    for path in runs.glob("*/run.json"):
        rows = Trace(path.parent).table("scalars", names=["loss"])
        found.update(
            (path.parent.name, step) for step in rows.filter(pc.greater(rows["value"], 100))["step"].to_pylist()
        )
    return found


def test_nothing_is_missed_nothing_repeated_and_nobody_hurt(tmp_path: Path) -> None:
    chance = random.Random(7)
    runs, rules = tmp_path / "runs", tmp_path / "mine.py"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOCK)
    runs.mkdir()
    rules.write_text(RULES)
    receiver = Receiver()
    url = f"http://127.0.0.1:{receiver.server_port}/"
    paths = f"{tmp_path / 'site'}:{Path(__file__).parents[2]}"
    watch = [
        sys.executable,
        "-m",
        "stepwatch.cli",
        "watch",
        str(runs),
        "--rules",
        f"{rules}:Spike",
        "--interval",
        "0.2",
    ]
    watch += ["--stop", "--answer", "1.5", "--grace", "1", "--notify", url, "--state", str(tmp_path / "state")]

    def start(*more: str, full: bool = False) -> subprocess.Popen[bytes]:
        clock = f"{chance.choice(CLOCKS)} {chance.choice(CLOCKS)}"
        env = {**os.environ, "PYTHONPATH": paths, "CLOCK_SHIFT": clock}
        disk = full_disk if full else None
        process = subprocess.Popen([*watch, *more], env=env, stdout=subprocess.DEVNULL, stderr=log, preexec_fn=disk)
        ending.callback(process.kill)
        return process

    with (tmp_path / "log").open("wb") as log, ExitStack() as ending:
        first = start()
        while not (runs / ".stepwatch-watch.json").exists():
            time.sleep(0.05)
        seconds = 4 + 2.5 * KILLS
        env = {**os.environ, "PYTHONPATH": paths}
        jobs = [
            subprocess.Popen([sys.executable, "-c", JOB, str(runs / f"{kind}-{n}"), kind, str(seconds)], env=env)
            for n, kind in enumerate(KINDS)
        ]
        bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        for process in (*jobs, bystander):
            ending.callback(process.kill)
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.2, 4))
            kind = chance.choice((0, 1, 2, 4, 5))  # a job that begins there meanwhile could not write either
            victim = runs / f"{KINDS[kind]}-{kind}" / "findings"
            if chance.random() < 0.5:
                chance.choice((in_the_way, in_the_way, forbidden))(victim)
            first.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
            if chance.random() < 0.5:
                first.wait()  # else the next one starts while this one still ends
            first = start(full=chance.random() < 0.15)
        first.kill()
        first.wait()
        first = start()
        statuses = {f"{kind}-{n}": job.wait(timeout=360) for (n, kind), job in zip(enumerate(KINDS), jobs, strict=True)}
        first.kill()
        first.wait()
        while True:  # a message holds 1000 findings at most, and the receiver refuses some
            start("--once").wait(timeout=600)
            if not list((tmp_path / "state" / "outbox").glob("*/waiting/*.json")):
                break
        untouched = bystander.poll() is None
    receiver.shutdown()

    said = (tmp_path / "log").read_text()
    expected = spikes(runs)
    told = Counter(
        (Path(entry["run"]).name, entry["finding"]["last_step"])
        for body in receiver.messages.values()
        for entry in body["findings"]
    )
    assert told == expected, said
    assert {"doomed-4", "deaf-5"} <= {run for run, _ in expected}
    assert statuses.pop("doomed-4") == 7
    assert statuses.pop("deaf-5") == -signal.SIGTERM
    assert set(statuses.values()) == {0}
    assert untouched
    assert len(list((runs / "deaf-5").glob("asked-*"))) == 1
    for path in runs.iterdir():
        if path.is_dir():
            for row in Trace(path).findings():
                done = Counter(action["action"] for action in row["actions"] if action["outcome"] == "done")
                # One that starts while the records are out of sight says again what it has not done again.
                assert done["notify"] >= 1, (path, row, said)
