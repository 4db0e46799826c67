"""A job that hangs is found, with the rank, the phase and the line that hold it. All processes are real."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pytest

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.profile_requests import ProfileAnswer, answer_profile, forget_profile_answer
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.sidecar.hangs import HangWatch
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.run import Found, WatchedRun
from stepwatch.rules.sidecar.states import States
from stepwatch.rules.stacks import dump_stacks
from tests.forked import start_script
from tests.processes import kill_tree

JOB = """
import ctypes, os, sys, time, torch
from torch import nn
from stepwatch.probe import Hook
torch.set_num_threads(1)
path, kind, here, rank, ranks = *sys.argv[1:3], *map(int, sys.argv[3:])
os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
go = False

def stand_still():
    hook._writer.flush()
    if kind == "holding":
        ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock
    time.sleep(600)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, x):
        if go and kind != "script":
            stand_still()
        return self.layer(x)

model = Model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
hook = Hook(path, model=model, optimizer=optimizer)
for step in range(40):
    optimizer.zero_grad()
    go = step == here + rank
    if go and kind == "script":
        stand_still()
    if go and kind == "evaluating":
        model.eval()
        go = False
        hook._writer.flush()
        while True:
            with torch.no_grad():
                model(torch.randn(8, 4))
            time.sleep(0.01)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    time.sleep(0.02)
"""


DDP = """
import sys, time, torch
import torch.distributed as dist
from torch import nn
from stepwatch.probe import Hook
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, x):
        if rank == 1 and step == 20:
            stuck_in_here()
        return self.layer(x)

def stuck_in_here():
    hook._writer.flush()
    time.sleep(600)

step = 0
model = nn.parallel.DistributedDataParallel(Model())
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
hook = Hook(sys.argv[1], model=model, optimizer=optimizer)
for step in range(40):
    optimizer.zero_grad()
    loss = model(torch.randn(8, 4)).sum()
    if rank == 0 and step == 20:
        hook._writer.flush()
    loss.backward()
    optimizer.step()
    time.sleep(0.02)
"""

# kind: ranks, step at which rank 0 stands still
JOBS = {"forward": (2, 20), "holding": (1, 20), "evaluating": (1, 20), "script": (1, 20), "early": (1, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs that have come to a standstill, by kind."""
    folder = tmp_path_factory.mktemp("hangs")
    jobs = []
    for kind, (ranks, here) in JOBS.items():
        jobs += [start_script(JOB, folder / kind, kind, here, rank, ranks) for rank in range(ranks)]
    for kind, (ranks, here) in JOBS.items():
        while not all(has_come_to(folder / kind, rank, here + rank) for rank in range(ranks)):
            assert all(job.exitcode is None for job in jobs)
            time.sleep(0.1)
    yield folder
    for job in jobs:
        job.kill()
        job.join()


def has_come_to(run: Path, rank: int, step: int) -> bool:
    """Whether the steps before it are on disk, and the process has said since that it is there, or cannot."""
    try:
        rows = Trace(run).table("steps", ranks=[rank]).filter(pc.field("mode") == "TRAIN").num_rows
    except TraceError:
        return False
    return rows == step and (run.name == "holding" or beat(run, rank).get("step") == step)


def beat(run: Path, rank: int) -> dict[str, float]:
    try:
        content: dict[str, float] = json.loads((run / "control" / f"beat-rank={rank:05d}.json").read_text())
    except FileNotFoundError:
        return {}
    return content


def look(run: Path, seconds: float) -> list[Finding]:
    """What is found when nothing has moved for so long."""
    now = [0.0]
    trace = Trace(run)
    watch = HangWatch(trace, lambda: now[0])
    found: list[Finding] = []
    watch.look(trace.ranks, trace.ranks)
    for now[0] in (31.0, 31.0 + seconds):
        found += watch.look(trace.ranks, [])
    now[0] += 5
    again = watch.look(trace.ranks, [])
    assert not found or again == []  # it is said once
    return found


def test_the_rank_the_phase_and_the_line_are_named(folder: Path) -> None:
    """Rank 0 hangs in step 20, rank 1 a step later."""
    (finding,) = look(folder / "forward", 31)
    assert (finding.rule, finding.severity, finding.rank, finding.first_step) == ("Hang", Severity.ERROR, 0, 20)
    assert "in forward; ranks 1 stand still as well" in finding.message
    assert finding.value > finding.threshold == 30
    assert finding.evidence["ranks"] == [0, 1] and "stand_still" in finding.suggestion
    assert all("stand_still" in finding.evidence["stacks"][rank] for rank in ("0", "1"))


def test_under_torchrun_the_rank_is_named_that_the_other_waits_for_in_a_collective(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(DDP)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    job = subprocess.Popen([*launcher, str(tmp_path / "job.py"), str(tmp_path / "run")])
    try:
        while not all(has_come_to(tmp_path / "run", rank, 20) for rank in range(2)):
            assert job.poll() is None
            time.sleep(0.1)
        while [beat(tmp_path / "run", rank).get("phase") for rank in range(2)] != ["collective", "forward"]:
            assert job.poll() is None
            time.sleep(0.1)
        (finding,) = look(tmp_path / "run", 31)
    finally:
        kill_tree(job)  # torchrun gives each rank a session of its own
    assert (finding.rank, finding.severity, finding.first_step) == (1, Severity.ERROR, 20)
    assert "rank 1 has stood still" in finding.message and "in forward; ranks 0 stand still as well" in finding.message
    assert "stuck_in_here" in finding.suggestion
    assert "backward" in finding.evidence["stacks"]["0"] and "stuck_in_here" in finding.evidence["stacks"]["1"]


def test_one_that_holds_the_interpreters_lock_shows_its_stack_as_well(folder: Path) -> None:
    (finding,) = look(folder / "holding", 31)
    assert "stand_still" in finding.suggestion


def test_an_evaluation_is_not_a_hang(folder: Path) -> None:
    until = time.monotonic() + 60
    while beat(folder / "evaluating", 0)["still_seconds"] > 5:  # on a busy machine it may have to wait for its turn
        assert time.monotonic() < until
        time.sleep(0.1)
    assert look(folder / "evaluating", 20) == []


def test_the_scripts_own_code_may_be_at_work(folder: Path) -> None:
    (finding,) = look(folder / "script", 31)
    assert finding.severity is Severity.WARNING and "in the script's own code" in finding.message


def test_a_rank_that_is_profiled_may_hold_up_the_others(folder: Path) -> None:
    answer_profile(folder / "script", 0, ProfileAnswer("a request", "running", ""))
    try:
        assert look(folder / "script", 1000) == []
        assert len(look(folder / "script", 2000)) == 1
    finally:
        forget_profile_answer(folder / "script", 0)


def test_the_first_steps_may_take_long(folder: Path) -> None:
    assert look(folder / "early", 1000) == []
    assert len(look(folder / "early", 2000)) == 1


def test_a_process_that_has_not_asked_for_it_gets_no_signal(folder: Path) -> None:
    trace = Trace(folder / "forward")
    mine = beat(folder / "forward", 0)
    assert dump_stacks(trace, 0, {}) == ""
    assert dump_stacks(trace, 0, {**mine, "pid": mine["pid"] + 1}) == ""
    assert "stand_still" in dump_stacks(trace, 0, mine)
    assert trace.live()


@pytest.mark.parametrize("beside", [True, False], ids=["with the watch", "by the rule alone"])
def test_what_stands_still_is_told_once_though_a_rule_finds_it_too(folder: Path, tmp_path: Path, beside: bool) -> None:
    trace = Trace(folder / "script")
    last = int(pc.max(trace.table("steps")["time_ns"]).as_py()) / 1e9
    policy = Policy("all", tuple(configure(["Hang"], [f"Hang.seconds={time.time() - last + 2}", "Hang.factor=0.01"])))
    now = [0.0]
    watched = WatchedRun(trace, policy, trace.path, States(tmp_path), act=False)
    watched._hangs = HangWatch(trace, lambda: now[0]) if beside else None
    found: list[Finding] = []
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found += [event.finding for event in watched.look() if isinstance(event, Found)]
        now[0] += 31
        if found and until > time.monotonic() + 4:
            until = time.monotonic() + 4  # in which the rule would find it too
        time.sleep(0.3)
    watched.close(10)
    assert [("stacks" in finding.evidence) for finding in found] == [beside]


def test_samples_of_the_machine_are_no_sign_that_a_rank_moves(folder: Path, tmp_path: Path) -> None:
    """They are written every other second, whatever the script does; here a second counts for five."""
    trace = Trace(folder / "script")
    watched = WatchedRun(trace, Policy("all", ()), trace.path, States(tmp_path), act=False)
    watched._hangs = HangWatch(trace, lambda: 5 * time.monotonic())
    found: list[Finding] = []
    until = time.monotonic() + 60
    while not found and time.monotonic() < until:
        found = [event.finding for event in watched.look() if isinstance(event, Found)]
        time.sleep(0.1)
    watched.close(10)
    assert [finding.evidence["ranks"] for finding in found] == [[0]]
