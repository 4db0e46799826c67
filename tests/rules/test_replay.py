"""Steps assembled from a trace: whatever the cuts between files, rules see what the process saw."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwatch.probe.store.layout import rank_folder
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.probe.store.schema import STAT_COLUMNS
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.catalogue import RuleSpec, configure
from stepwatch.rules.engine import Engine
from stepwatch.rules.finding import Coverage, Finding, Status
from stepwatch.rules.recommended import RECOMMENDED
from stepwatch.rules.replay import LiveAnalysis, StepStream, analyze
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step, StepBuilder

TENSORS = ("Net_a.weight", "Net_a.bias", "gradient/Net_a.weight", "gradient/Net_a.bias", "relu_output_0")
INFOS = {name: TensorInfo(name, (3,), "float32", ("gradients",) if "grad" in name else ()) for name in TENSORS}


def describe(step: Step) -> tuple[Any, ...]:
    """All that a rule can see of a step, comparable."""
    stats = None
    if step.stats is not None:
        infos = tuple(info.collections for info in step.stats.tensors.infos)
        stats = (step.stats.tensors.names, infos, step.stats.matrix.tobytes())
    derived = {key: vector.tobytes() for key, vector in step.derived.items()}
    scalars = [(name, np.float64(value).tobytes()) for name, value in step.scalars.items()]
    place = (step.rank, step.step, step.mode, step.mode_step, step.time_ns)
    return (place, stats, sorted(scalars), sorted(derived.items()), sorted(step.timing.items()))


class Everything(Rule):
    """Finds something in every step, so that the order and content of all of them show in the findings."""

    seen: list[tuple[Any, ...]]

    def __init__(self) -> None:
        self.seen = []

    def observe(self, step: Step) -> Iterable[Finding]:
        self.seen.append(describe(step))
        count = len(self.seen)
        yield self.finding(
            step, first_step=count, tensors=[repr(self.seen[-1])], value=0, threshold=0, message="", suggestion=""
        )

    def coverage(self) -> Coverage:
        return Coverage(decided=True)


@st.composite
def recordings(draw: st.DrawFn) -> list[StepRecord]:
    """Records as a hook makes them: global steps never fall, each mode counts for itself."""
    finite = st.floats(-1e30, 1e30)
    any_float = st.floats(allow_nan=True, allow_infinity=True)
    step, counts, records = 0, dict.fromkeys(("TRAIN", "EVAL", "PREDICT", "GLOBAL"), 0), []
    for number in range(draw(st.integers(1, 12))):
        mode = draw(st.sampled_from(list(counts)))
        names = tuple(draw(st.lists(st.sampled_from(TENSORS), unique=True)))
        stats = None
        if names:
            rows = draw(st.lists(finite, min_size=len(names), max_size=len(names)))
            stats = np.outer(rows, np.arange(1, len(STAT_COLUMNS) + 1))
            stats[:, :4] = draw(st.integers(0, 2**40))
        vectors = st.lists(any_float, max_size=3).map(np.array)
        quantities = draw(st.dictionaries(st.tuples(st.sampled_from(TENSORS), st.just("own")), vectors))
        records.append(
            StepRecord(
                step,
                mode,
                counts[mode],
                time_ns=1000 + number,
                names=names,
                stats=stats,
                derived=[(*key, vector.astype(np.float64)) for key, vector in quantities.items()],
                scalars=list(draw(st.dictionaries(st.sampled_from(["loss_output_0", "lr"]), any_float)).items()),
                timing=draw(st.dictionaries(st.sampled_from(["duration_ns", "data_ns"]), st.integers(0, 2**50))),
                saved=bool(names) and draw(st.booleans()),
                alarmed=draw(st.booleans()),
            )
        )
        counts[mode] += 1
        step += draw(st.integers(0, 1))
    return records


@contextmanager
def recorded(records: list[StepRecord], cuts: set[int]) -> Iterator[tuple[Path, TraceWriter, Iterator[int]]]:
    """A run being written: each ``next`` submits up to the following cut and flushes."""
    folder = Path(tempfile.mkdtemp())
    writer = TraceWriter(folder / "run", flush_seconds=1000)
    for info in INFOS.values():
        writer.describe(info)

    def advance() -> Iterator[int]:
        for number, record in enumerate(records):
            assert writer.submit(record)
            if number in cuts:
                writer.flush()
                yield number

    try:
        yield folder / "run", writer, advance()
        writer.close("finished")
    finally:
        shutil.rmtree(folder)


def in_process(records: list[StepRecord], specs: list[RuleSpec]) -> list[Finding]:
    engine, builder = Engine(specs), StepBuilder(0, INFOS.__getitem__)
    found = [finding for record in records for finding in engine.feed(builder.from_record(record))]
    return found + engine.conclude(0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records=recordings(), cuts=st.sets(st.integers(0, 11)))
def test_findings_are_the_same_in_process_live_and_offline(records: list[StepRecord], cuts: set[int]) -> None:
    specs = [RuleSpec(Everything), *map(RuleSpec, RECOMMENDED)]
    with recorded(records, cuts) as (run, writer, advance):
        live = LiveAnalysis(Trace(run), specs)
        found = live.poll()
        for _ in advance:
            found += live.poll()
            assert live.analysis(live=True).results[0].status in (Status.IN_PROGRESS, Status.ISSUES_FOUND)
        writer.close("finished")
        found += live.poll()
        expected = in_process(records, specs)
        assert len([finding for finding in expected if finding.rule == "Everything"]) == len(records)
        assert [finding.id for finding in found] == [finding.id for finding in expected]
        offline = analyze(Trace(run), specs)
        assert not offline.live
        assert sorted(repr(f.to_json()) for f in offline.findings) == sorted(repr(f.to_json()) for f in expected)
        decided = [finding.last_step for finding in offline.findings]
        assert decided == sorted(decided)


def test_a_live_analysis_sees_each_step_once_while_files_are_joined(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run", flush_seconds=1000)
    stream = StepStream(Trace(tmp_path / "run"), 0)
    seen = []
    for step in range(60):
        names = TENSORS[: 1 + step % 3]
        writer.submit(
            StepRecord(step, "TRAIN", step, 1, names, np.full((len(names), len(STAT_COLUMNS)), step + 1.0), saved=True)
        )
        writer.flush()
        if step % 7 == 0:
            seen += list(stream.poll())
    writer.close("finished")
    seen += list(stream.poll())
    assert [step.step for step in seen] == list(range(60))
    assert all(step.stats is not None and set(step.stats.mean) == {step.step + 1} for step in seen)
    assert all(step.stats is not None and len(step.stats.tensors) == 1 + step.step % 3 for step in seen)


def write(run: Path, steps: range, *, start: int = 0, flush: bool = False, value: float = 1.0) -> None:
    writer = TraceWriter(run, flush_seconds=1000)
    writer.set_start_step(start)
    for step in steps:
        stats = np.full((1, len(STAT_COLUMNS)), value)
        writer.submit(
            StepRecord(step, "TRAIN", step, 1, TENSORS[:1], stats, saved=True, scalars=[("loss_output_0", value)])
        )
        if flush:
            writer.flush()
    writer.close("finished")


def test_rows_without_their_row_of_steps_come_at_the_end(tmp_path: Path) -> None:
    """A job killed while it flushed leaves what it had written of a step."""
    run = tmp_path / "run"
    write(run, range(5))
    for part in rank_folder(run, "steps", 0).iterdir():
        part.unlink()
    stream = StepStream(Trace(run), 0)
    assert list(stream.poll()) == []
    left = list(stream.drain())
    assert [step.step for step in left] == [0, 1, 2, 3, 4]
    assert all(step.stats is not None and step.scalars == {"loss_output_0": 1.0} for step in left)
    assert list(stream.drain()) == []
    (result,) = analyze(Trace(run), configure(["ExplodingTensor"])).results
    assert result.coverage.steps == 5


def test_a_damaged_file_of_steps_costs_only_what_it_held(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, range(4))
    write(run, range(4, 8), start=4)
    first = min(rank_folder(run, "steps", 0).iterdir())
    first.write_bytes(first.read_bytes()[:-20])
    trace = Trace(run)
    seen = list(StepStream(trace, 0).poll())
    assert [step.step for step in seen] == list(range(8))
    assert all(step.stats is not None and step.scalars for step in seen)
    assert len(trace.warnings) == 1 and first.name in trace.warnings[0]


def test_steps_of_an_attempt_that_was_replaced_are_judged_anew(tmp_path: Path) -> None:
    """A job resumed from step 3 replaces what its first attempt had recorded from there on."""
    run = tmp_path / "run"
    specs = [RuleSpec(Everything)]
    write(run, range(6), value=1.0)
    live = LiveAnalysis(Trace(run), specs)
    assert len(live.poll()) == 6
    write(run, range(3, 5), start=3, value=2.0)
    assert [finding.last_step for finding in live.poll()] == [0, 1, 2, 3, 4]
    offline = analyze(Trace(run), specs)
    assert [finding.id for finding in live.analysis(live=False).findings] == [f.id for f in offline.findings]


@pytest.mark.parametrize("ends", [True, False])
def test_ranks_are_judged_apart(tmp_path: Path, ends: bool) -> None:
    for rank in range(2):
        writer = TraceWriter(tmp_path / "run", rank=rank, flush_seconds=1000)
        for step in range(3 + rank):
            writer.submit(StepRecord(step, "TRAIN", step, 1, scalars=[("loss_output_0", 1.0)]))
        if ends or rank == 0:
            writer.close("finished")
        else:
            writer.flush()
    analysis = analyze(Trace(tmp_path / "run"), [RuleSpec(Everything)])
    assert analysis.live is not ends
    assert sorted((finding.rank, finding.last_step) for finding in analysis.findings) == [
        *((0, step) for step in range(3)),
        *((1, step) for step in range(4)),
    ]
    if not ends:
        writer.close("finished")
