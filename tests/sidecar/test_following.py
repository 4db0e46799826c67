"""A sidecar follows many runs, and may die at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from stepwatch.probe.store.checkpoints import note_checkpoint
from stepwatch.probe.store.control import read_request
from stepwatch.probe.store.findings import FindingLog
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.actions import Action, StopAction
from stepwatch.rules.sidecar import changes, places
from stepwatch.rules.sidecar.changes import Changes, tells_of_changes
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.run import Ended, Event, Found, Said
from stepwatch.rules.sidecar.sidecar import Sidecar
from tests.sidecar.conftest import SPECS, Job, Telling

Begin = Callable[..., Job]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits between two looks."""
    monkeypatch.setattr("stepwatch.rules.sidecar.sidecar._WALK_SECONDS", 0.0)
    monkeypatch.setattr("stepwatch.rules.sidecar.sidecar._WALK_SHARE", 1e9)
    monkeypatch.setattr("stepwatch.rules.sidecar.sidecar._FIRST_PAUSE", 0.0)
    monkeypatch.setattr("stepwatch.rules.sidecar.run._LIVENESS_SECONDS", 0.0)


def watch(folder: Path, *actions: Action) -> Sidecar:
    policy = Policy("all", tuple(SPECS), actions)
    return Sidecar([folder], lambda trace: policy, state_dir=folder.parent / "state")


def steps(events: list[Event], run: str = "a") -> list[int]:
    return [event.finding.last_step for event in events if isinstance(event, Found) and event.run.name == run]


def said(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Said)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def test_a_slow_store_does_not_delay_the_search_for_runs(
    folder: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepwatch.rules.sidecar.sidecar._WALK_SHARE", 0.005)
    # No store can be made slow here: this stands for one.
    monkeypatch.setattr("stepwatch.rules.sidecar.sidecar.remote.refresh", lambda folder: time.sleep(0.5))
    sidecar = watch(folder)
    assert list(sidecar.look()) == []
    begin(folder / "a").train(300)
    deadline = time.monotonic() + 120
    events: list[Event] = []
    while not steps(events) and time.monotonic() < deadline:
        events += sidecar.look()
        time.sleep(0.05)
    assert steps(events) == [0]


def test_runs_that_appear_at_any_depth_are_judged_as_they_grow(folder: Path, begin: Begin) -> None:
    tell = Telling()
    sidecar = watch(folder, tell)
    assert list(sidecar.look()) == [] and not sidecar.all_ended()
    a, b = begin(folder / "a").train(1, 200), begin(folder / "deep" / "er" / "b").train(300)
    events = list(sidecar.look())
    assert (steps(events), steps(events, "b")) == ([1], [0])
    a.train(2, 400)
    assert steps(list(sidecar.look())) == [3]
    b.end("exception")
    (ended,) = [event for event in sidecar.look() if isinstance(event, Ended)]
    assert (ended.run.name, ended.status, ended.findings) == ("b", "exception", 1)
    assert not sidecar.all_ended()
    a.end()
    list(sidecar.look())
    assert sidecar.all_ended()
    sidecar.close()
    assert sorted(tell.told) == [("a", 1), ("a", 3), ("b", 0)]


def test_nothing_is_done_twice_and_nothing_missed_by_one_that_is_started_again(folder: Path, begin: Begin) -> None:
    tell = Telling()
    first = watch(folder, tell)
    list(first.look())
    job = begin(folder / "a").train(200)
    list(first.look())
    first.close()
    job.train(1, 300)
    begin(folder / "b").train(400).end()  # began and ended while nobody watched
    second = watch(folder, tell)
    list(second.look())
    second.close()
    assert sorted(tell.told) == [("a", 0), ("a", 2), ("b", 0)]
    assert [[action["outcome"] for action in row["actions"]] for row in Trace(folder / "a").findings()] == [
        ["done"]
    ] * 2


def test_a_run_that_was_over_before_is_judged_and_left_alone(folder: Path, begin: Begin) -> None:
    begin(folder / "a").train(200).end()
    tell = Telling()
    for _ in range(2):
        sidecar = watch(folder, tell)
        assert steps(list(sidecar.look())) == [0]
        sidecar.close()
    assert tell.told == []
    begin(folder / "a", start_step=1).train(300)
    list(sidecar.look())
    sidecar.close()
    assert tell.told == [("a", 1)]


def test_a_job_that_is_started_again_while_it_is_watched(folder: Path, begin: Begin) -> None:
    tell = Telling()
    sidecar = watch(folder, tell)
    list(sidecar.look())
    begin(folder / "a").train(1, 200, 1).end("exception")
    assert steps(list(sidecar.look())) == [1]
    assert list(sidecar.look()) == []
    again = begin(folder / "a", start_step=1).train(1)
    assert steps(list(sidecar.look())) == []
    again.train(500)
    assert steps(list(sidecar.look())) == [2]
    sidecar.close()
    assert tell.told == [("a", 1), ("a", 2)]


def test_of_two_one_acts_and_the_other_takes_over_what_was_left(folder: Path, begin: Begin) -> None:
    first, second = Telling(), Telling()
    one, other = watch(folder, first), watch(folder, second)
    list(one.look()), list(other.look())
    job = begin(folder / "a").train(200)
    list(one.look())
    (message,) = said(list(other.look()))
    assert message == f"process {os.getpid()} of {Trace(folder / 'a').attempts(0).entries[0]['user']} on " + (
        f"{os.uname().nodename} acts on this run; this one looks on"
    )
    one.close()  # gone before it has seen the next, and before the job ends
    job.train(300).end()
    assert said(list(other.look())) == ["the other has gone; this one acts from now on"]
    other.close()
    assert (first.told, second.told) == ([("a", 0)], [("a", 1)])


def test_the_lease_of_a_sidecar_that_is_killed_goes_to_the_next(folder: Path, begin: Begin) -> None:
    job = begin(folder / "a").train(1)
    command = [sys.executable, "-m", "stepwatch.cli", "watch", str(folder), "--interval", "0.1"]
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lock = folder / "a" / "control" / "watch.lock"
    try:
        while not (lock.exists() and lock.read_bytes().strip()):
            assert victim.poll() is None
            time.sleep(0.05)
        tell = Telling()
        sidecar = watch(folder, tell)
        job.train(200)
        assert said(list(sidecar.look())) and tell.told == []
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    list(sidecar.look())
    sidecar.close()
    assert tell.told == [("a", 1)]


def test_a_run_that_cannot_be_written_is_left_as_it_is(
    folder: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(watch(folder).look())
    begin(folder / "a").train(200).end()
    monkeypatch.setattr(places.os, "access", lambda path, mode: False)
    before = sorted(folder.rglob("*"))
    tell = Telling()
    for _ in range(2):
        sidecar = watch(folder, tell)
        sidecar._places[0][1].remember({})
        list(sidecar.look())
        sidecar.close()
    assert tell.told == [("a", 0)]
    assert sorted(folder.rglob("*")) == before


def test_trouble_with_a_run_is_said_once_and_does_not_keep_the_others_waiting(folder: Path, begin: Begin) -> None:
    sidecar = watch(folder)
    begin(folder / "a").train(200)
    (folder / "newer").mkdir()
    (folder / "newer" / "run.json").write_text('{"format_version": 9}')
    (folder / "half").mkdir()
    (folder / "half" / "run.json").write_text('{"format_ver')
    events = list(sidecar.look())
    assert steps(events) == [0]
    messages = said(events)
    assert len(messages) == 2
    assert any("written in format version 9 by a newer Stepwatch" in message for message in messages)
    assert any("not valid JSON" in message for message in messages)
    assert said(list(sidecar.look())) == []
    shutil.copytree(folder / "a", folder / "half", dirs_exist_ok=True)  # the copy is complete
    assert steps(list(sidecar.look()), "half") == [0]


def test_a_run_that_is_renamed_is_the_same_and_one_that_goes_is_dropped(folder: Path, begin: Begin) -> None:
    tell = Telling()
    sidecar = watch(folder, tell)
    list(sidecar.look())
    begin(folder / "a").train(200).end()
    list(sidecar.look())
    while not any(row["actions"] for row in Trace(folder / "a").findings()):
        time.sleep(0.01)
    (folder / "a").rename(folder / "b")
    assert said(list(sidecar.look())) == ["has gone; no longer watched"]
    shutil.rmtree(folder / "b")
    assert said(list(sidecar.look())) == ["has gone; no longer watched"]
    sidecar.close()
    assert tell.told == [("a", 0)]


def test_what_cannot_be_recorded_now_is_recorded_later(folder: Path, begin: Begin) -> None:
    sidecar = watch(folder)
    list(sidecar.look())
    job = begin(folder / "a").train(1)
    (folder / "a" / "findings").rmdir()
    (folder / "a" / "findings").write_text("in the way")
    job.train(200)
    assert steps(list(sidecar.look())) == [1]
    (folder / "a" / "findings").unlink()
    list(sidecar.look())
    sidecar.close()
    assert [row["last_step"] for row in Trace(folder / "a").findings()] == [1]


def test_a_job_is_not_stopped_for_what_an_earlier_attempt_did(folder: Path, begin: Begin) -> None:
    begin(folder / "a").train(1, 200).end("stopped")
    list(watch(folder).look())
    begin(folder / "a", start_step=2).train(1)
    sidecar = watch(folder, StopAction())
    assert steps(list(sidecar.look())) == [1]
    sidecar.close()
    assert read_request(folder / "a") is None
    (row,) = Trace(folder / "a").findings()
    assert row["actions"][0]["detail"] == "nothing to stop: the job was started again since"


def test_a_resume_from_a_suspect_checkpoint_is_warned_of(folder: Path, begin: Begin) -> None:
    begin(folder / "a").train(1).end("stopped")
    note_checkpoint(folder / "a", 0, 9, folder / "c.pt")
    row = {"finding_id": "a", "rule": "ExplodingTensor", "severity": "error", "first_step": 5, "last_step": 5}
    FindingLog(folder / "a", "hook").append([row])
    list(watch(folder).look())
    begin(folder / "a", start_step=9).train(1)
    sidecar = watch(folder)
    assert said(list(sidecar.look())) == [
        f"it went on from a suspect checkpoint, {folder / 'c.pt'}: written after ExplodingTensor began at step 5"
    ]
    assert said(list(sidecar.look())) == []


def test_network_file_systems_are_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(folder), fstype="nfs4")]
    monkeypatch.setattr(changes.psutil, "disk_partitions", lambda all: mounts)
    assert not tells_of_changes(folder) and tells_of_changes(folder.parent)
    with Changes([folder], interval=0.01) as waiting:
        assert not waiting.by_events
        waiting.wait(busy=0.0)


def test_a_file_event_wakes_it(folder: Path) -> None:
    with Changes([folder], interval=60) as waiting:
        assert waiting.by_events
        (folder / "a").mkdir()
        waiting.wait(busy=0.0)  # or the test runs into its time limit
        (folder / "a" / "x.tmp").write_text("")
        os.replace(folder / "a" / "x.tmp", folder / "a" / "x.parquet")
        waiting.wait(busy=0.0)


def test_the_command_ends_on_sigterm_with_its_records_written(folder: Path, begin: Begin) -> None:
    rules = folder.parent / "mine.py"
    rules.write_text("from tests.sidecar.conftest import Spike as Base\n\n\nclass Spike(Base):\n    '''The same.'''\n")
    job = begin(folder / "a").train(1, 200)
    command = [sys.executable, "-m", "stepwatch.cli", "watch", str(folder), "--rules", f"{rules}:Spike"]
    command += ["--stop", "--dry-run"]  # this process writes the run
    watching = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}
    )
    while not any(row["actions"] for row in Trace(folder / "a").findings()):
        assert watching.poll() is None
        time.sleep(0.05)
    watching.send_signal(signal.SIGTERM)
    output, errors = watching.communicate(timeout=120)
    assert watching.returncode == 1 and errors.endswith("stepwatch: no longer watching\n")
    assert f"dry run: would ask 1 rank(s) to stop; then end process {os.getpid()} of rank 0" in errors
    assert "ERROR Spike" in output and "loss is 200" in output
    (row,) = Trace(folder / "a").findings()
    assert [(action["action"], action["outcome"]) for action in row["actions"]] == [("stop (dry run)", "done")]
    assert json.loads((folder / ".stepwatch-watch.json").read_text()) == {"over_before": {}}
    job.end()
