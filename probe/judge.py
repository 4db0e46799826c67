"""Rules and actions inside the training process: the one place where the probe uses the rules."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from stepwatch.probe.store.records import StepRecord, TensorInfo
from stepwatch.rules.actions import Action, Dispatcher, LogAction, StopAction, WebhookAction
from stepwatch.rules.baselines import beside_baseline
from stepwatch.rules.catalogue import configure
from stepwatch.rules.engine import Engine
from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import Layouts
from stepwatch.rules.profiler.profiling import profile_when_slow
from stepwatch.rules.service.actions import configured_actions
from stepwatch.rules.step import StepBuilder


class Judge:
    """Judges records as the writer's thread takes them, and acts on what it finds.

    Args:
        run_dir: where findings are recorded.
        rank: the rank of this process.
        rules: names of rules or rule sets.
        actions: "stop", "profile", "log", URLs of webhooks, or action objects.
        stop: asks the hook to stop the job.
        suspect: told when something was found while the job goes on.

    Raises:
        RuleError: a rule that does not exist.
        ValueError: an action that is not as described.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        rules: str | Sequence[str],
        actions: Sequence[str | Action],
        stop: Callable[[str], None],
        suspect: Callable[[], None],
    ) -> None:
        self._suspect = suspect
        specs = beside_baseline(configure([rules] if isinstance(rules, str) else list(rules), []), run_dir)
        self._engine = Engine(specs)
        self._actions = [_action(each, stop) for each in actions]
        self._actions += configured_actions(specs, None if "stop" in actions else StopAction(stop))
        self._turn = threading.Lock()
        self._node = socket.gethostname()
        self._layouts = Layouts()
        self._run_dir = run_dir
        self._rank = rank
        self._tensors: dict[str, TensorInfo] = {}
        self._builder = StepBuilder(rank, lambda name: self._tensors.get(name) or TensorInfo(name))
        self._dispatcher: Dispatcher | None = None

    def describe(self, info: TensorInfo) -> None:
        """A tensor that records will hold."""
        self._tensors[info.name] = info

    def judge(self, records: list[StepRecord]) -> None:
        """Look at records in order; called by the writer's thread."""
        for record in records:
            step = self._builder.from_record(record)
            with self._turn:
                wrong, dear = self._engine.feed(step), self._engine.watch(step)
            if wrong:
                self._suspect()
            self._act([*wrong, *dear])

    def sample(self, rows: Sequence[tuple[int, str, str, float]]) -> None:
        """Look at samples of this node, all of one time; called by the sampler's thread."""
        if rows and self._engine.profiles:
            sample = self._layouts.sample(self._node, rows[0][0], (row[1:] for row in rows))
            with self._turn:
                findings = self._engine.watch(sample)
            self._act(findings)

    def conclude(self) -> None:
        """The run is over; waits for actions under way."""
        with self._turn:
            findings = [*self._engine.conclude(self._rank), *self._engine.conclude_run()]
        self._act(findings)
        if self._dispatcher is not None:
            self._dispatcher.close()

    def _act(self, findings: Sequence[Finding]) -> None:
        if not findings:
            return
        with self._turn:
            if self._dispatcher is None:
                self._dispatcher = Dispatcher(self._run_dir, self._actions, judged_by="hook")
            self._dispatcher.dispatch(findings)


def _action(action: str | Action, stop: Callable[[str], None]) -> Action:
    if action == "stop":
        return StopAction(stop)
    if action == "profile":
        return profile_when_slow()
    if action == "log":
        return LogAction()
    if isinstance(action, str):
        if action.startswith(("http://", "https://")):
            return WebhookAction(action)
        raise ValueError(
            f"action {action!r} is unknown; expected 'stop', 'profile', 'log', a webhook's URL or an action object"
        )
    return action
