"""A sidecar that is started again goes on from what it knew, and finds the same."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwatch.probe.store.layout import rank_folder
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import RULE_SETS, RuleSpec, configure
from stepwatch.rules.finding import Finding
from stepwatch.rules.replay import LiveAnalysis, analyze
from stepwatch.rules.sidecar import states
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.run import Event, Found
from stepwatch.rules.sidecar.sidecar import Sidecar
from tests.sidecar.conftest import Job, Spike, Telling

Begin = Callable[..., Job]
LAYERS = ("fc1", "fc2")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepwatch.rules.sidecar.sidecar._WALK_SECONDS", 0.0)
    monkeypatch.setattr("stepwatch.rules.sidecar.sidecar._WALK_SHARE", 1e9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


class Other(Spike):
    """The same under another name."""


def watch(folder: Path, *actions: Telling, rule: type[Spike] = Spike) -> Sidecar:
    policy = Policy("all", (RuleSpec(rule),), actions)
    return Sidecar([folder], lambda trace: policy, state_dir=folder.parent / "state")


def steps(events: Iterable[Event]) -> list[int]:
    return [event.finding.last_step for event in events if isinstance(event, Found)]


def lose_the_past(run: Path) -> None:
    """What was judged is not there to be judged again."""
    for table in ("scalars", "steps"):
        for path in rank_folder(run, table, 0).iterdir():
            path.unlink()
    for path in (run / "tail").iterdir():
        path.unlink()


def known_of(folder: Path) -> list[Path]:
    return list((folder.parent / "state" / "known").glob("*.state"))


def sick(writer: TraceWriter, step: int, rank: int) -> None:
    """A step of a job with vanishing gradients, a loss that stalls, spikes, and in the end a NaN."""
    chance = np.random.default_rng([step, rank])
    names = tuple(f"{kind}{layer}.weight" for kind in ("", "gradient/") for layer in LAYERS)
    stats = np.zeros((len(names), len(STAT_COLUMNS)))
    values = np.abs(chance.normal(1, 0.1, len(names))) * [1, 1, 10.0 ** (-step / 8), 1]
    for column, name in enumerate(STAT_COLUMNS):
        stats[:, column] = {"numel": 64, "n_nan": step > 95, "n_inf": 0, "n_zero": 0, "min": -3 * values}.get(
            name, values
        )
    record = StepRecord(step, "TRAIN", step, step * 1_000_000_000, names, stats, saved=True)
    spike = 30.0 if step % 25 == 24 else 0.0
    record.scalars = [("CrossEntropyLoss_output_0", float(2 + spike + chance.normal(0, 0.05)) if step < 99 else np.nan)]
    record.timing["duration_ns"] = 200_000_000 if rank else 100_000_000
    writer.submit(record)


@pytest.mark.parametrize("chosen", sorted(RULE_SETS))
def test_who_goes_on_after_every_flush_finds_what_one_who_never_stopped_finds(chosen: str, tmp_path: Path) -> None:
    specs = [spec for spec in configure([chosen]) if spec.name not in ("SimilarAcrossRuns", "StalledTrainingRule")]
    writers = [TraceWriter(tmp_path, rank=rank) for rank in range(2)]
    for name in (f"{kind}{layer}.weight" for kind in ("", "gradient/") for layer in LAYERS):
        collection = "gradients" if name.startswith("gradient") else "weights"
        writers[0].describe(TensorInfo(name, (8, 8), "float32", (collection,), name.split("/")[-1][:3], "Linear"))
    state: bytes | None = None
    found: list[Finding] = []
    for begin, end in pairwise((0, 1, 8, 38, 41, 81, 91, 100)):
        for rank, writer in enumerate(writers):
            for step in range(begin, end):
                sick(writer, step, rank)
            writer.flush()
        analysis = LiveAnalysis(Trace(tmp_path), specs)
        before = analysis.go_on_from(pickle.loads(state)) if state else []
        assert {each.id for each in before} == {each.id for each in found}
        found += analysis.poll()
        state = pickle.dumps(analysis.state())
        assert analysis.state() is not None
    for writer in writers:
        writer.close("finished")
    analysis = LiveAnalysis(Trace(tmp_path), specs)
    analysis.go_on_from(pickle.loads(state or b""))
    analysis.conclude()
    went_on, at_once = analysis.analysis(live=False), analyze(Trace(tmp_path), specs)
    assert analysis.steps == 200
    assert [each.to_json() for each in went_on.results] == [each.to_json() for each in at_once.results]
    assert chosen in ("profiler", "sagemaker-profiler") or at_once.findings


def test_what_was_judged_is_not_judged_again(folder: Path, begin: Begin) -> None:
    tell = Telling()
    first = watch(folder, tell)
    list(first.look())
    job = begin(folder / "a").train(1, 200)
    assert steps(first.look()) == [1]
    first.close()
    lose_the_past(folder / "a")
    job.train(1, 300)
    second = watch(folder, tell)
    assert steps(second.look()) == [1, 3] and second.steps == 4
    job.end()
    assert steps(second.look()) == []
    second.close()
    assert tell.told == [("a", 1), ("a", 3)]
    third = watch(folder, tell)  # when the run is over
    lose_the_past_of_what_ended(folder / "a")
    assert steps(third.look()) == [1, 3]
    third.close()
    assert tell.told == [("a", 1), ("a", 3)]


def lose_the_past_of_what_ended(run: Path) -> None:
    for path in rank_folder(run, "scalars", 0).iterdir():
        path.unlink()


def test_it_is_kept_now_and_then(folder: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_REST_SECONDS", 0.0)
    monkeypatch.setattr(states, "_SHARE", 1e9)
    begin(folder / "a").train(200)
    killed = watch(folder)
    assert steps(killed.look()) == [0]
    lose_the_past(folder / "a")
    assert steps(watch(folder).look()) == [0]


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def of_code(path: Path) -> None:
    """Like one of another version of the rules."""
    path.write_bytes(path.read_bytes().replace(b'"judged_by": "', b'"judged_by": "0', 1))


def without_content(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [damaged, of_code, without_content])
def test_what_cannot_be_gone_on_from_is_judged_from_the_beginning(
    spoil: Callable[[Path], Any], folder: Path, begin: Begin
) -> None:
    first = watch(folder)
    begin(folder / "a").train(1, 200)
    list(first.look())
    first.close()
    (path,) = known_of(folder)
    spoil(path)
    second = watch(folder)
    assert steps(second.look()) == [1] and second.steps == 2
    second.close()


def test_other_rules_judge_from_the_beginning(folder: Path, begin: Begin) -> None:
    first = watch(folder)
    begin(folder / "a").train(1, 200)
    list(first.look())
    first.close()
    events = list(watch(folder, rule=Other).look())
    assert [event.finding.rule for event in events if isinstance(event, Found)] == ["Other"]


def test_an_attempt_that_replaced_what_was_judged_is_judged(folder: Path, begin: Begin) -> None:
    first = watch(folder)
    begin(folder / "a").train(1, 200, 300).end()
    list(first.look())
    first.close()
    begin(folder / "a", start_step=2).train(1, 400)
    assert steps(watch(folder).look()) == [1, 3]


def test_a_folder_that_others_can_write_is_not_read(
    folder: Path, begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    first = watch(folder)
    begin(folder / "a").train(200)
    list(first.look())
    first.close()
    (path,) = known_of(folder)
    path.parent.chmod(0o777)
    lose_the_past(folder / "a")
    assert steps(watch(folder).look()) == []
    assert "others can write there; runs are judged from their beginning" in caplog.text


def test_what_is_known_of_a_run_goes_with_it(folder: Path, begin: Begin) -> None:
    first = watch(folder)
    begin(folder / "a").train(200)
    list(first.look())
    first.close()
    assert len(known_of(folder)) == 1
    os.rename(folder / "a", folder.parent / "elsewhere")
    watch(folder)
    assert known_of(folder) == []
