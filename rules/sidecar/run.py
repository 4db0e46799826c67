"""One run that a sidecar follows."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwatch.probe.store.control import ask_for_recent
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.smdebug.importing import UNKNOWN_HOST
from stepwatch.probe.store.suspects import recorded_onsets, resumed_from_suspect
from stepwatch.rules.actions import Dispatcher
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.figures import Figures
from stepwatch.rules.finding import Finding, RuleResult
from stepwatch.rules.replay import LiveAnalysis
from stepwatch.rules.sidecar.hangs import HangWatch
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.resolving import Resolutions
from stepwatch.rules.sidecar.stamps import RankStamps, Stamps
from stepwatch.rules.sidecar.states import States
from stepwatch.rules.sidecar.store_lease import lease_of

log = logging.getLogger("stepwatch")

_LIVENESS_SECONDS = 5.0


@dataclass(frozen=True)
class Event:
    """Something that the sidecar has to say of a run."""

    run: Path


@dataclass(frozen=True)
class Begun(Event):
    """Judging begins, or begins anew under another policy.

    Attributes:
        job: the job's name.
        specs: the rules.
    """

    job: str
    specs: tuple[RuleSpec, ...]


@dataclass(frozen=True)
class Found(Event):
    """A rule found something."""

    finding: Finding


@dataclass(frozen=True)
class Ended(Event):
    """The run is over.

    Attributes:
        status: how it ended, see :meth:`Trace.status`.
        findings: how many there were.
        results: the verdicts.
    """

    status: str
    findings: int
    results: tuple[RuleResult, ...]


@dataclass(frozen=True)
class Said(Event):
    """Something about the run that a person should know, said once."""

    message: str


class WatchedRun:
    """Judges a run as it grows, and acts on it while it holds the run's lease.

    After a restart of the sidecar judging goes on from what is kept, or begins with the run's first step: rules depend
    on nothing but the steps, so the same findings come again, and what was done about them is in the records.

    Args:
        trace: the run.
        policy: rules, and what to do about findings.
        records: where findings, actions and the lease are kept.
        states: what is known of runs from before.
        act: whether anything is done; not about a run that was over before it was watched.
    """

    def __init__(self, trace: Trace, policy: Policy, records: Path, states: States, *, act: bool) -> None:
        self.trace = trace
        self.policy = policy
        self.act = act
        self.ended = False
        self._analysis: LiveAnalysis | None = None
        self._records = records
        self._states = states
        self._dispatcher = Dispatcher(trace.path, policy.actions, judged_by="watch", records=records)
        # Of a job that smdebug records nobody knows what it is doing.
        self._hangs = HangWatch(trace) if trace.info.host != UNKNOWN_HOST else None
        self._resolutions = Resolutions(trace, policy.actions, records)
        self._lease = lease_of(trace.path, records / "control")
        self._acting: bool | None = None
        self._pending: list[Finding] = []
        self._stamps = Stamps()
        self._places = (f"{trace.path}/ranks", f"{trace.path}/end")
        self._ranks: dict[int, RankStamps] = {}
        self._all_go_on = False
        self.told: set[tuple[str, int]] = set()
        self._warned: set[str] = set()
        self._kept_steps = 0
        self._live = True
        self._live_asked = 0.0
        self._moved = time.monotonic()

    @property
    def steps(self) -> int:
        """How many steps were judged; 0 once the run is over."""
        return self._analysis.steps if self._analysis is not None else 0

    @property
    def figures(self) -> Figures | None:
        """Where the run stands; None once it is over."""
        return self._analysis.figures if self._analysis is not None else None

    @property
    def acting(self) -> bool:
        """Whether it is this sidecar that acts on the run, as far as is known."""
        return self._acting is not False

    @property
    def silent(self) -> float:
        """Seconds for which nothing has happened: nothing was written, and nothing is to be done."""
        return time.monotonic() - self._moved if self.idle else 0.0

    @property
    def unkept(self) -> bool:
        """Whether steps were judged since what is known was kept."""
        return self.steps != self._kept_steps

    @property
    def idle(self) -> bool:
        """Whether no action is under way."""
        return not self._pending and self._dispatcher.idle

    def look(self) -> list[Event]:
        """Judge what is new, and act on it.

        Raises:
            TraceError, OSError: the run cannot be read.
        """
        events = self._judge()
        if self.act:
            try:
                events += self._act()
            except OSError as error:  # what is to be done stays pending
                events.append(Said(self.trace.source, f"cannot be acted upon: {error}"))
        return events

    def keep(self) -> None:
        """Keep what is known, so that one that is started again goes on from here."""
        if self._analysis is not None and self.unkept and self.acting:
            self._states.keep(self.trace, self.policy.specs, self._analysis.state)
            self._kept_steps = self._analysis.steps

    def close(self, timeout: float) -> None:
        """Finish the actions under way, for at most so many seconds, and let another sidecar act."""
        self.keep()
        self._dispatcher.close(timeout)
        if self.act and self.ended and self.acting and not self._pending:
            try:
                self._resolutions.conclude()
            except OSError as error:
                log.warning("%s: that it is over cannot be told: %s", self.trace.source, error)
        self._lease.release()

    def _judge(self) -> list[Event]:
        if self.trace.source != self.trace.path:
            self.trace.refresh()  # what is judged grows when it is looked at
        begun, ended = self._stamps.changed(self._places[0]), self._stamps.changed(self._places[1])
        if self.ended and not (begun and self.trace.live()):
            return []
        self.act |= self.ended  # it was started again while it is watched
        self.ended = False
        events: list[Event] = []
        known: list[Finding] = []
        if self._analysis is None:
            self._analysis, known = self._begin()
            events.append(Begun(self.trace.source, self.trace.info.job_name, self.policy.specs))
        changed = self._changed_ranks(begun, ended)
        live = self._is_live(ask=begun or ended or not changed)
        self.trace.refresh()
        findings: list[Finding] = []
        moved: list[int] = []  # and not those of which samples came alone
        if not live:
            findings = self._analysis.conclude()
        elif changed or self._analysis.waits:
            self._all_go_on &= not (begun or ended)
            findings = self._analysis.poll(changed, live=True, all_go_on=self._all_go_on)
            self._all_go_on = True  # and not if that has failed
            moved = self._analysis.moved
        if live and self._hangs:
            findings = self._hangs.look_beside(findings, self._ranks, moved)
        if self.policy.study is not None:
            findings = [*findings, *self.policy.study.look(self.trace, live=live)]
        new = [self.policy.judge(finding) for finding in (*known, *findings) if self._is_new(finding)]
        self._pending += new if self.act else []
        self._resolutions.see(new)
        if begun:
            self._resolutions.begin()
        events += [Found(self.trace.source, finding) for finding in new]
        if begun and (warning := resumed_from_suspect(self.trace, recorded_onsets(self._recorded()))):
            events += [Said(self.trace.source, warning)] if warning not in self._warned else []
            self._warned.add(warning)
        if not live:
            self.keep()
            self.ended = True
            results = tuple(self._analysis.analysis(live=False).results)
            self._analysis = None  # a run that is over takes no memory
            events.append(Ended(self.trace.source, self.trace.status(), len(self.told), results))
        return events

    def _begin(self) -> tuple[LiveAnalysis, list[Finding]]:
        """Go on from what is known of the run, or begin with its first step; returns also what is known to be found."""
        known = self._states.known(self.trace, self.policy.specs)
        analysis = LiveAnalysis(self.trace, self.policy.specs)
        if known is None:
            return analysis, []
        found = analysis.go_on_from(known)
        self._kept_steps = analysis.steps
        return analysis, found

    def _changed_ranks(self, begun: bool, ended: bool) -> list[int]:
        """Ranks that may have written something."""
        if begun or not self._ranks:
            self._ranks = {rank: RankStamps(self.trace.path, rank) for rank in self.trace.ranks} | self._ranks
        changed = [rank for rank, stamps in self._ranks.items() if stamps.changed() or begun or ended]
        if changed:
            self._moved = time.monotonic()
        return changed

    def _act(self) -> list[Event]:
        if self.ended and not self._pending:
            if self._dispatcher.idle:
                if self.acting:
                    self._resolutions.conclude()
                self._lease.release()
            return []
        if not self._lease.acquire():
            first = self._acting is not False
            self._acting = False
            holder = self._lease.holder()
            return [Said(self.trace.source, f"{holder} acts on this run; this one looks on")] if first else []
        took_over = self._acting is False
        self._acting = True
        pending, self._pending = self._pending, []
        if self._dispatcher.dispatch(pending) and not self.ended and self._records == self.trace.path:
            ask_for_recent(self.trace.path)
        self._resolutions.look()
        return [Said(self.trace.source, "the other has gone; this one acts from now on")] if took_over else []

    def _recorded(self) -> list[dict[str, Any]]:
        return self.trace.findings(self._records) if len(self.trace.attempts(0).entries) > 1 else []

    def _is_new(self, finding: Finding) -> bool:
        key = (finding.id, self.trace.attempts(finding.rank).deciding(finding.last_step))
        if key in self.told:
            return False
        self.told.add(key)
        return True

    def _is_live(self, *, ask: bool) -> bool:
        """Whether the job goes on; while it writes this is asked seldom."""
        now = time.monotonic()
        if ask and (not self._live or now - self._live_asked >= _LIVENESS_SECONDS):
            self._live = self.trace.live()
            self._live_asked = now
        return self._live
