"""Judges a trace: assembles its rows into steps and feeds them to the engine, once each."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepwatch.probe.store.attempts import Attempts
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.records import TensorInfo
from stepwatch.probe.store.schema import SMDEBUG_CONFIG, STAT_COLUMNS
from stepwatch.probe.store.tail import Tails
from stepwatch.rules.baselines import beside_baseline
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.engine import Engine
from stepwatch.rules.figures import Figures
from stepwatch.rules.finding import Finding, RuleResult
from stepwatch.rules.profiler.base import Sample
from stepwatch.rules.profiler.stream import LATENESS_NS, ProfileStream
from stepwatch.rules.reduced import Reduced
from stepwatch.rules.rows import MODES, Commit, Key, StepRows, commits_of, derived_of, scalars_of, stats_of, values_of
from stepwatch.rules.step import Step, StepBuilder


def _precedes(one: Key, other: Key) -> bool:
    """Whether a step was recorded before another; within a global step only known of the same mode."""
    return one[:2] < other[:2] or (one[:3] == other[:3] and one[3] < other[3])


class StepStream:
    """The steps of one rank in recorded order, each once.

    A step is complete when its row of ``steps`` has come; the rows of other tables were written before it.
    Rows whose row of ``steps`` never comes, because the job was killed in the middle of a flush or a file is
    damaged, are delivered without it: before the next step, or by :meth:`drain`. Statistics of steps that were not
    saved, written later because something happened, are for people: rules in the training process have not seen them.

    Args:
        trace: the run.
        rank: the rank.
        tails: the tails of the run's ranks, where others read them too.
        whole_tensors: whether steps have their ``values``.
        statistics: whether they have the numbers of their tensors, beside the names.
    """

    def __init__(
        self,
        trace: Trace,
        rank: int,
        tails: Tails | None = None,
        *,
        whole_tensors: bool = False,
        statistics: bool = True,
    ) -> None:
        self._trace = trace
        self._tensors: dict[str, TensorInfo] = {}
        self._builder = StepBuilder(rank, self._describe)
        self._rank = rank
        self._commits = commits_of(trace, rank)
        self._stats = stats_of(trace, rank, self._builder.tensor_set, STAT_COLUMNS if statistics else STAT_COLUMNS[:1])
        self._scalars = scalars_of(trace, rank)
        self._derived = derived_of(trace, rank)
        self._values = values_of(trace, rank) if whole_tensors else None
        self._delivered: set[Key] = set()  # of the latest global step
        self._attempt = len(trace.attempts(rank).entries) - 1
        self._tail = (tails or Tails(trace.path)).reader(rank, self._attempt)
        self._tables: dict[str, StepRows[Any]] = {
            "steps": self._commits,
            "stats": self._stats,
            "scalars": self._scalars,
            "derived": self._derived,
            **({"values": self._values} if self._values is not None else {}),
        }
        self._contents = [rows for table, rows in self._tables.items() if table != "steps"]
        self._at_the_tail = False

    def poll(self) -> Iterator[Step]:
        """Steps that are new: from the tail, as far as it goes on from here, else from the files."""
        if self._at_the_tail and (yield from self._follow_tail(self._reached())) and not self._tail.waiting:
            return
        beginning = self._tail.beginning(self._reached())
        yield from self._read_files(beginning)
        if beginning is not None and self._all_taken(beginning):
            yield from self._follow_tail(max(beginning, self._reached()))
        elif beginning is not None:
            yield from self._read_files(None)
        self._at_the_tail = self._all_taken(None)

    def drain(self) -> Iterator[Step]:
        """What is left when no more will be written."""
        yield from self._read_files(None)
        self._look_again(None)
        yield from self._uncommitted(None)

    def state(self) -> dict[str, Any] | None:
        """How far it has come, between two polls, for :meth:`go_on_from`; None while rows wait for their step."""
        if not all(rows.settled for rows in self._tables.values()):
            return None
        positions = {table: rows.position for table, rows in self._tables.items()}
        return {"tables": positions, "sets": self._builder.state, "delivered": self._delivered}

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Go on from where the stream of the same rank was."""
        for table, rows in self._tables.items():
            rows.go_to(state["tables"][table])
        self._builder.go_on_from(state["sets"])
        self._delivered = state["delivered"]

    def _reached(self) -> int:
        return self._commits.next_flush(self._attempt)

    def _follow_tail(self, flush: int) -> Generator[Step, None, bool]:
        """Steps of the tail from a flush on; returns whether there was anything."""
        followed = False
        for frame in self._tail.take(flush):
            if frame.records is None or (self._values is not None and frame.rows.get("values")):
                return False
            for table, rows in self._tables.items():
                rows.pass_over(self._attempt, frame.flush, frame.rows.get(table, 0))
            for record in frame.records:
                self._remember((self._attempt, record.step, MODES.index(record.mode), record.mode_step))
                yield self._builder.from_record(record)
            followed = True
        return followed

    def _all_taken(self, end: int | None) -> bool:
        """Whether nothing is left of the flushes before the next one, or ``end``, and nothing was read of that."""
        reached = max(self._reached(), end or 0)
        if any(rows.next_flush(self._attempt) > reached for rows in self._contents):
            return False
        self._look_again((self._attempt, reached))
        self._skip_late()
        return all(rows.head() is None and rows.next_flush(self._attempt) <= reached for rows in self._contents)

    def _read_files(self, end: int | None) -> Iterator[Step]:
        """Steps in files that begin before a flush of this attempt, or in all."""
        self._commits.look_again(None if end is None else (self._attempt, end))
        seen = -1
        while (key := self._commits.head()) is not None:
            row = self._commits.take()
            if self._commits.pieces != seen:  # what belongs to its steps was written before
                seen = self._commits.pieces
                self._look_again(None if end is None else (self._attempt, max(end, self._commits.begun(self._attempt))))
            yield from self._uncommitted(key)
            yield self._build(key, row)

    def _look_again(self, stop_before: tuple[int, int] | None) -> None:
        for rows in self._contents:
            rows.look_again(stop_before)

    def _uncommitted(self, before: Key | None) -> Iterator[Step]:
        """Steps that have no row of ``steps``, as far as they precede a step that has."""
        while True:
            self._skip_late()
            heads = [head for rows in self._contents if (head := rows.head()) is not None]
            passed = [head for head in heads if before is None or _precedes(head, before)]
            if not passed:
                return
            yield self._build(min(passed, key=lambda key: (key[:2], key[3])), None)

    def _skip_late(self) -> None:
        while (head := self._stats.head()) is not None and (head in self._delivered or self._has_passed(head)):
            self._stats.take()

    def _has_passed(self, key: Key) -> bool:
        latest = next(iter(self._delivered), None)
        return latest is not None and key[:2] < latest[:2]

    def _remember(self, key: Key) -> None:
        if self._delivered and next(iter(self._delivered))[:2] != key[:2]:
            self._delivered.clear()
        self._delivered.add(key)

    def _build(self, key: Key, commit: Commit | None) -> Step:
        self._remember(key)
        _, step, mode, mode_step = key
        begun, saved, timing = commit or (0, True, {})
        built = Step(self._rank, step, MODES[mode], mode_step, begun, timing=timing, saved=saved)
        if self._stats.head() == key:
            stats = self._stats.take()
            built.stats = stats if saved else None
        if self._scalars.head() == key:
            built.scalars = self._scalars.take()
        if self._derived.head() == key:
            built.derived = self._derived.take()
        if self._values is not None and self._values.head() == key:
            built.values = self._values.take()
        return built

    def _describe(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            self._tensors = self._trace.tensors()
        return self._tensors.get(name) or TensorInfo(name)


@dataclass
class Analysis:
    """What the rules say of a run.

    Attributes:
        results: one verdict per rule.
        findings: all findings, by the step at which they were decided.
        live: whether the run was still being written.
        notes: what the hook could not record.
        warnings: damaged files that were left out.
        counters: dropped records and errors, summed over ranks.
    """

    results: list[RuleResult]
    findings: list[Finding]
    live: bool
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)


class LiveAnalysis:
    """Judges a run as it grows.

    Attributes:
        steps: how many were judged.
        moved: the ranks of which the last poll judged steps.
        figures: where the run stands.
        waits: whether there are rules that judge how long nothing has come: they are asked at each poll.

    Args:
        trace: the run.
        specs: the rules.
    """

    def __init__(self, trace: Trace, specs: Sequence[RuleSpec]) -> None:
        self._trace = trace
        self._engine = Engine(beside_baseline(specs, trace.path))
        self._whole_tensors = any(spec.rule.whole_tensors for spec in specs)
        self._streams: dict[int, tuple[StepStream, Attempts]] = {}
        self._concluded: set[int] = set()
        self._tails = Tails(trace.path)
        self._profile = ProfileStream(trace, self._tails)
        self._complete = Reduced(trace) if SMDEBUG_CONFIG in trace.info.config else None
        self._run_concluded = False
        self.steps = 0
        self.moved: list[int] = []
        self.figures = Figures()
        self.waits = self._engine.waits

    def poll(
        self, ranks: Sequence[int] | None = None, *, live: bool | None = None, all_go_on: bool = False
    ) -> list[Finding]:
        """Judge what is new and return what was found in it.

        Args:
            ranks: those that may have written something; all by default.
            live: whether the run is still being written, where that is known.
            all_go_on: whether it is known that no rank has begun or ended since the last poll.
        """
        found: list[Finding] = []
        self._trace.refresh()
        ranks = self._trace.ranks if ranks is None else ranks
        self.moved = []
        for rank in ranks:
            known = self._streams.get(rank) if all_go_on else None
            # Asked first: what is read then is all there is.
            ended = known is None and self._trace.end(rank) is not None
            before = self.steps
            found += self._feed((known[0] if known is not None else self._stream(rank)).poll())
            if self.steps > before:
                self.moved.append(rank)
            if ended:
                found += self._conclude(rank)
        if self._engine.waits and (self._trace.live() if live is None else live):
            for rank in self._streams.keys() - self._concluded:
                found += self._engine.waited(rank, time.time_ns())
        if self._engine.profiles:
            found += self._watch(time.time_ns() - LATENESS_NS, ranks)
        return found

    def conclude(self) -> list[Finding]:
        """No more will come, whether the run said so or was killed."""
        found: list[Finding] = []
        self._trace.refresh()
        for rank in self._trace.ranks if self._engine.feeds else ():
            found += self._feed(self._stream(rank).poll())
            found += self._conclude(rank)
        if self._engine.profiles and not self._run_concluded:
            self._run_concluded = True
            found += self._watch(None, self._trace.ranks)
            found += self._engine.conclude_run()
        return found

    def state(self) -> dict[str, Any] | None:
        """All that is known of the run, between two polls, for :meth:`go_on_from`; None while it cannot be told.

        It shares objects with this analysis, so it is to be copied (pickled) at once.
        """
        if self._complete is not None:
            return None
        streams = {rank: (stream.state(), attempts) for rank, (stream, attempts) in self._streams.items()}
        if any(state is None for state, _ in streams.values()):
            return None
        return {
            "engine": self._engine.state(),
            "streams": streams,
            "profile": self._profile.state(),
            "concluded": self._concluded,
            "run_concluded": self._run_concluded,
            "steps": self.steps,
            "figures": self.figures,
        }

    def go_on_from(self, state: dict[str, Any]) -> list[Finding]:
        """Go on from where the analysis of the same run by the same rules was; returns what had been found by then."""
        self._engine.go_on_from(state["engine"])
        for rank, (position, attempts) in state["streams"].items():
            stream = self._open(rank)
            stream.go_on_from(position)
            self._streams[rank] = (stream, attempts)
        self._profile.go_on_from(state["profile"])
        self._concluded, self._run_concluded = state["concluded"], state["run_concluded"]
        self.steps, self.figures = state["steps"], state["figures"]
        return self._engine.findings()

    def _watch(self, until_ns: int | None, ranks: Sequence[int]) -> list[Finding]:
        found: list[Finding] = []
        for event in self._profile.poll(until_ns, ranks):
            if isinstance(event, Sample):
                self.figures.see_sample(event)
            found += self._engine.watch(event)
        return found

    def _feed(self, steps: Iterator[Step]) -> list[Finding]:
        found: list[Finding] = []
        for step in steps:
            self.steps += 1
            self.figures.see(step)
            found += self._engine.feed(self._complete(step) if self._complete else step)
        return found

    def _conclude(self, rank: int) -> list[Finding]:
        if rank in self._concluded:
            return []
        self._concluded.add(rank)
        return self._feed(self._stream(rank).drain()) + self._engine.conclude(rank)

    def analysis(self, *, live: bool) -> Analysis:
        """The verdicts so far."""
        return Analysis(
            results=self._engine.results(live=live),
            findings=self._engine.findings(),
            live=live,
            notes=self._trace.notes,
            warnings=list(self._trace.warnings),
            counters=self._trace.counters,
        )

    def _open(self, rank: int) -> StepStream:
        if self._engine.profiles:
            self._profile.follow(rank)  # before the other reads what both are to get
        return StepStream(self._trace, rank, self._tails, whole_tensors=self._whole_tensors)

    def _stream(self, rank: int) -> StepStream:
        attempts = self._trace.attempts(rank)
        known = self._streams.get(rank)
        if known is None or known[1] != attempts:
            if known is not None:
                self._engine.restart(rank)
                self._concluded.discard(rank)
            self._streams[rank] = known = (self._open(rank), attempts)
        return known[0]


def analyze(trace: Trace, specs: Sequence[RuleSpec]) -> Analysis:
    """Judge all that a run holds by now."""
    live = trace.live()
    judged = LiveAnalysis(trace, specs)
    if live:
        judged.poll()
    else:
        judged.conclude()
    return judged.analysis(live=live)
