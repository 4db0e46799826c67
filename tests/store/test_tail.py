"""The tail of a rank: who follows a live run gets the same steps from it as from the files, each once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwatch.probe.store import tail
from stepwatch.probe.store.layout import rank_folder
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.tail import tail_file
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.replay import StepStream

NAMES = ("a.weight", "gradient/a.weight")


class Job:
    """A rank whose steps can be told apart; a step in two has statistics."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.writer = TraceWriter(run, flush_seconds=1000)
        self.steps = 0

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            record = StepRecord(self.steps, "TRAIN", self.steps, self.steps, saved=self.steps % 2 == 0)
            if record.saved:
                record.names, record.stats = NAMES, np.full((2, len(STAT_COLUMNS)), self.steps + 1.0)
            record.scalars.append(("loss", float("nan") if self.steps == 3 else 1.5 * self.steps))
            record.timing["duration_ns"] = self.steps
            self.writer.submit(record)
            self.steps += 1
        self.writer.flush()

    def lose_files(self) -> None:
        for table in ("stats", "scalars", "steps"):
            for path in rank_folder(self.run, table, 0).iterdir():
                path.unlink()


def follow(stream: StepStream) -> list[int]:
    """Numbers of the steps that are new; what they hold is checked."""
    seen = []
    for step in stream.poll():
        assert step.time_ns == step.timing["duration_ns"] == step.step
        np.testing.assert_equal(step.scalars["loss"], float("nan") if step.step == 3 else 1.5 * step.step)
        assert (step.stats is not None) == step.saved == (step.step % 2 == 0)
        if step.stats is not None:
            assert step.stats.tensors.names == NAMES
            assert (step.stats.matrix == step.step + 1).all()
        seen.append(step.step)
    return seen


def test_new_steps_come_without_a_file_being_opened(tmp_path: Path) -> None:
    job = Job(tmp_path / "run")
    job.train(2)
    stream = StepStream(Trace(job.run), 0)
    assert follow(stream) == [0, 1]
    job.train(3)
    job.lose_files()
    assert follow(stream) == [2, 3, 4]
    assert follow(stream) == []
    assert follow(StepStream(Trace(job.run), 0)) == [0, 1, 2, 3, 4]  # one who comes later begins with it, too
    job.writer.close("finished")
    assert not tail_file(job.run, 0).parent.exists()  # it is in the files


@pytest.mark.parametrize("harm", ["removed", "cut", "garbled", "of another attempt"])
def test_what_the_tail_does_not_have_comes_from_the_files(tmp_path: Path, harm: str) -> None:
    job = Job(tmp_path / "run")
    job.train()
    stream = StepStream(Trace(job.run), 0)
    assert follow(stream) == [0]
    job.train()
    path = tail_file(job.run, 0)
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-5],
            "garbled": content[:-5] + bytes(5),
            "of another attempt": content.replace(b"swtail1\n\0", b"swtail1\n\1"),
            "removed": b"",
        }[harm]
    )
    assert follow(stream) == [1]
    job.train(2)
    assert follow(stream) == [2, 3]
    job.writer.close("finished")
    assert follow(stream) == []


def test_a_flush_of_very_many_steps_is_read_from_its_files(tmp_path: Path) -> None:
    job = Job(tmp_path / "run")
    job.train()
    stream = StepStream(Trace(job.run), 0)
    assert follow(stream) == [0]
    job.train(500)
    assert tail_file(job.run, 0).stat().st_size < 1000
    assert follow(stream) == list(range(1, 501))
    job.train()
    job.lose_files()
    assert follow(stream) == [501]
    job.writer.close("finished")


def test_files_that_are_joined_across_the_end_of_a_tail_give_no_step_twice(tmp_path: Path) -> None:
    job = Job(tmp_path / "run")
    job.train()
    stream = StepStream(Trace(job.run), 0)
    assert follow(stream) == [0]
    for step in range(1, 20):
        job.train()
        assert follow(stream) == [step]
    tail_file(job.run, 0).unlink()
    for _ in range(14):
        job.train()  # the second sixteen of files become one; four of these were never opened
    assert follow(stream) == list(range(20, 34))
    job.writer.close("finished")
    assert follow(stream) == []


def test_two_attempts(tmp_path: Path) -> None:
    job = Job(tmp_path / "run")
    job.train(4)
    stream = StepStream(Trace(job.run), 0)
    assert follow(stream) == [0, 1, 2, 3]
    job.writer.close("finished")
    again = Job(job.run)
    again.writer.set_start_step(4)
    again.steps = 4
    again.train(2)
    stream = StepStream(Trace(job.run), 0)
    assert follow(stream) == [0, 1, 2, 3, 4, 5]
    again.train()
    again.lose_files()
    assert follow(stream) == [6]
    again.writer.close("finished")


@given(st.lists(st.sampled_from(["flush", "flush", "many", "read", "no tail", "skip"]), min_size=1, max_size=25))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_each_step_comes_once_whatever_happens_to_the_tail(moves: Sequence[str]) -> None:
    """Across files that are joined, tails that are begun anew, lost, or missed for a while."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail, "_TURN_BYTES", 1200)
        job = Job(Path(folder) / "run")
        stream = StepStream(Trace(job.run), 0)
        seen: list[int] = []
        for move in moves:
            if move == "read":
                seen += follow(stream)
            elif move == "no tail":
                tail_file(job.run, 0).unlink(missing_ok=True)
            elif move == "skip":
                for _ in range(17):
                    job.train()
            else:
                job.train(70 if move == "many" else 1)
        seen += follow(stream)
        job.writer.close("finished")
        seen += follow(stream)
        assert seen == list(range(job.steps))
