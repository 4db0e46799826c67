"""Damage, full disks, second writers, forks, and directories that are no traces."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepwatch.probe.store.control import StopWatcher, acknowledge, read_acknowledgement, request_stop
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.findings import FindingLog
from stepwatch.probe.store.follower import TableCursor
from stepwatch.probe.store.layout import rank_folder
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter

from .conftest import record


def two_files(run: Path) -> list[Path]:
    """A run of two attempts: one file of stats each."""
    for start in (0, 5):
        writer = TraceWriter(run)
        writer.set_start_step(start)
        for step in range(start, start + 5):
            writer.submit(record(step))
        writer.close("finished")
    return sorted(rank_folder(run, "stats", 0).glob("*.parquet"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "another table"])
def test_a_damaged_file_is_left_out_with_one_warning_that_names_it(tmp_path: Path, caplog, damage: str) -> None:
    run = tmp_path / "run"
    bad = two_files(run)[0]
    whole = bad.read_bytes()
    bad.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "garbage": b"PAR1" + bytes(range(256)) * 4 + b"PAR1",
            "another table": next(rank_folder(run, "scalars", 0).glob("*.parquet")).read_bytes(),
        }[damage]
    )
    trace = Trace(run)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert trace.table("stats", columns=["step", "l2"])["step"].to_pylist() == [
                s for s in range(5, 10) for _ in "ab"
            ]
    assert len(trace.warnings) == 1 and str(bad) in trace.warnings[0]
    assert len([r for r in caplog.records if str(bad) in r.message]) == 1
    followed = [p["step"].to_pylist() for p in TableCursor(Trace(run), "stats", 0, ["step", "mode", "l2"]).read()]
    assert followed == [[s for s in range(5, 10) for _ in "ab"]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such directory"),
        (lambda path: path.write_text("x"), "is a file; expected the directory of a run"),
        (lambda path: path.mkdir(), "is empty; expected the directory of a run"),
        (lambda path: (path / "src").mkdir(parents=True), "holds no run.json"),
        (lambda path: (path.mkdir(), (path / "run.json").write_text("{")), "run.json: not valid JSON"),
        (
            lambda path: (path.mkdir(), (path / "run.json").write_text("[1]")),
            "run.json: holds a list; expected an object",
        ),
        (
            lambda path: (path.mkdir(), (path / "run.json").write_text('{"a": 1}')),
            "format_version is None; expected a number",
        ),
        (
            lambda path: (path.mkdir(), (path / "run.json").write_text('{"format_version": 99}')),
            "format version 99 by a newer Stepwatch; this one reads up to 1",
        ),
        (
            lambda path: (path.mkdir(), (path / "run.json").write_text('{"format_version": 1, "world_size": "x"}')),
            "run.json: ",
        ),
    ],
)
def test_what_is_no_trace_is_said_in_one_line(tmp_path: Path, make, message: str) -> None:
    path = tmp_path / "run"
    make(path)
    with pytest.raises(TraceError) as caught:
        Trace(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_vanishes_while_reading_has_been_joined(tmp_path: Path) -> None:
    """Read again and again while a writer flushes and joins: never a gap, never a row twice."""
    run = tmp_path / "run"
    writer = TraceWriter(run, flush_seconds=0.005)
    trace = Trace(run)
    cursor = TableCursor(trace, "steps", 0, ["step", "mode"])
    followed: list[int] = []
    for step in range(400):
        writer.submit(record(step))
        if step % 5 == 0:
            seen = trace.table("steps", columns=["step"])["step"].to_pylist()
            assert seen == list(range(len(seen)))
            followed += [s for piece in cursor.read() for s in piece["step"].to_pylist()]
        time.sleep(0.001)
    writer.close("finished")
    followed += [s for piece in cursor.read() for s in piece["step"].to_pylist()]
    assert followed == list(range(400))


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run", queue_bytes=50_000, flush_seconds=60)
    taken = sum(writer.submit(record(step)) for step in range(200))
    assert 0 < taken < 200
    writer.close("finished")
    trace = Trace(tmp_path / "run")
    assert trace.table("steps").num_rows == taken
    assert trace.counters == {"dropped_records": 200 - taken}


def test_a_full_disk_costs_what_does_not_fit_and_nothing_else(tmp_path: Path) -> None:
    """A real file-size limit in a real process: writing fails, the job goes on, and later writing works again."""
    code = """
import resource, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.store.conftest import record
from stepwatch.probe.store.writer import TraceWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = TraceWriter(sys.argv[1], flush_seconds=0.05)
for step in range(50): writer.submit(record(step))
writer.flush()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
for step in range(50, 100): writer.submit(record(step))
time.sleep(0.4)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
for step in range(100, 150): writer.submit(record(step))
writer.close("finished")
print("went on")
"""
    run = tmp_path / "run"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(run), str(root)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "went on\n", done.stderr
    trace = Trace(run)
    assert trace.table("steps")["step"].to_pylist() == list(range(150))
    assert trace.table("stats").num_rows == 300
    assert trace.counters["write_errors"] >= 1
    assert any("File too large" in note for note in trace.notes)
    assert list(run.rglob("*.tmp")) == []


def test_leftovers_of_a_killed_writer_are_ignored_and_cleaned(tmp_path: Path) -> None:
    run = tmp_path / "run"
    files = two_files(run)
    folder = files[0].parent
    (folder / ".0000-00000009-00000009.parquet.tmp").write_bytes(b"half")
    copied = folder / "0000-00000000-00000003.parquet"
    copied.write_bytes(files[0].read_bytes())  # a join that was killed before it removed its part
    assert Trace(run).table("stats").num_rows == 20
    TraceWriter(run).close("finished")
    assert sorted(path.name for path in folder.iterdir()) == [copied.name, files[1].name]


def test_one_writer_per_rank(tmp_path: Path) -> None:
    first = TraceWriter(tmp_path / "run")
    with pytest.raises(TraceError, match=f"being written by process {os.getpid()}"):
        TraceWriter(tmp_path / "run")
    other = TraceWriter(tmp_path / "run", rank=1)
    for writer in (first, other):
        writer.close("finished")
    TraceWriter(tmp_path / "run").close("finished")


def test_a_dead_process_does_not_keep_the_directory(tmp_path: Path) -> None:
    code = (
        "import os, sys; from stepwatch.probe.store.writer import TraceWriter\n"
        "TraceWriter(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], timeout=60)
    trace = Trace(tmp_path / "run")
    assert not trace.live() and trace.end(0) is None
    writer = TraceWriter(tmp_path / "run")
    assert writer.attempt == 1
    assert trace.live()
    writer.close("finished")


def test_a_forked_child_writes_nothing_and_does_not_hang(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run")
    writer.submit(record(0))
    child = os.fork()
    if child == 0:
        status = int(writer.submit(record(1)))
        writer.flush()
        writer.close("finished")
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    writer.submit(record(2))
    writer.close("finished")
    assert Trace(tmp_path / "run").table("steps")["step"].to_pylist() == [0, 2]


def test_a_listener_that_raises_loses_nothing(tmp_path: Path) -> None:
    def listen(records: list[StepRecord]) -> None:
        raise RuntimeError("no opinion")

    writer = TraceWriter(tmp_path / "run", on_records=listen)
    for step in range(5):
        writer.submit(record(step))
    writer.close("finished")
    trace = Trace(tmp_path / "run")
    assert trace.table("steps").num_rows == 5
    assert trace.counters["judge_errors"] >= 1
    assert "RuntimeError: no opinion" in trace.notes[0]


def test_a_record_that_cannot_be_resolved_costs_only_itself(tmp_path: Path) -> None:
    def resolve(one: StepRecord) -> None:
        raise RuntimeError("device lost")

    writer = TraceWriter(tmp_path / "run")
    broken = StepRecord(0, "TRAIN", 0, 0, resolve=resolve)
    writer.submit(broken)
    writer.submit(record(1))
    writer.close("finished")
    trace = Trace(tmp_path / "run")
    assert trace.table("steps")["step"].to_pylist() == [0, 1]
    assert trace.counters == {"hook_errors": 1}


def test_findings_are_joined_with_what_was_done(tmp_path: Path) -> None:
    run = tmp_path / "run"
    TraceWriter(run).close("finished")
    row = {"finding_id": "a", "rule": "R", "severity": "error", "first_step": 1, "last_step": 2, "evidence": "{}"}
    FindingLog(run, "hook").append([row])
    FindingLog(run, "watch").append([row])
    FindingLog(run, "watch").append_action("a", "stop", "done", "stop requested")
    (found,) = Trace(run).findings()
    assert found["judged_by"] == "hook"
    assert [(done["action"], done["outcome"]) for done in found["actions"]] == [("stop", "done")]


def test_stop_requests(tmp_path: Path) -> None:
    request_stop(tmp_path, "for the attempt before", by="somebody")
    watcher = StopWatcher(tmp_path)
    assert watcher.poll() is None
    identity = request_stop(tmp_path, "enough", by="somebody")
    request = watcher.poll()
    assert request is not None and (request.id, request.reason, request.by) == (identity, "enough", "somebody")
    assert watcher.poll() is None
    acknowledge(tmp_path, 3, identity, step=7, checkpoint="c.pt")
    answer = read_acknowledgement(tmp_path, 3)
    assert answer is not None and (answer.request_id, answer.step, answer.checkpoint) == (identity, 7, "c.pt")
    assert read_acknowledgement(tmp_path, 0) is None


def test_reading_needs_no_torch(write) -> None:
    run = write(range(3))
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from stepwatch.probe.store.reader import Trace\n"
        "import stepwatch.rules.replay, stepwatch.probe\n"
        "print(Trace(sys.argv[1]).table('stats').num_rows)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "6\n", done.stderr


def test_the_rank_file_says_who_wrote(write) -> None:
    run = write(range(1))
    content = json.loads((run / "ranks" / "rank=00000.json").read_text())
    (attempt,) = content["attempts"]
    assert attempt["pid"] == os.getpid()
    assert attempt["start_step"] == 0
    assert {"host", "boot_id", "process_start_time", "executable", "user"} <= attempt.keys()
