"""``stepwatch watch``."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepwatch.cli import errors
from stepwatch.cli.options import RULES, SETTINGS
from stepwatch.cli.runs import RUN_PATH

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from rich.console import Console

    from stepwatch.cli.lines import JsonLines
    from stepwatch.rules.actions import Action
    from stepwatch.rules.finding import Status
    from stepwatch.rules.service.statuses import EvaluationStatuses
    from stepwatch.rules.sidecar.metrics import Metrics
    from stepwatch.rules.sidecar.otlp import OpenTelemetry
    from stepwatch.rules.sidecar.policy import Policy
    from stepwatch.rules.sidecar.policy_file import PolicyFile
    from stepwatch.rules.sidecar.run import Event
    from stepwatch.rules.sidecar.sidecar import Sidecar
    from stepwatch.rules.telling.courier import Courier

_SECONDS = click.FloatRange(min=0)


@click.command("watch")
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=RUN_PATH)
@click.option("--policy", type=click.Path(path_type=Path), help="What to do about which runs: a .toml or .yaml file.")
@click.option("--check", is_flag=True, help="Say what would be done about the runs that are there, and end.")
@RULES
@SETTINGS
@click.option("--stop", "stop", is_flag=True, help="Stop a job when an error is found: ask, SIGTERM, SIGKILL.")
@click.option("--profile", is_flag=True, help="Have a job profile three steps when a rule finds them slow.")
@click.option("--answer", type=_SECONDS, default=60.0, show_default=True, help="Seconds to wait for the job's answer.")
@click.option("--grace", type=_SECONDS, default=30.0, show_default=True, help="Seconds between SIGTERM and SIGKILL.")
@click.option("--scheduler", is_flag=True, help="End a job that does not answer through its scheduler first.")
@click.option("--dry-run", is_flag=True, help="Say what --stop would do, and do not do it.")
@click.option("--webhook", metavar="URL", help="Post findings as JSON; the same as --notify URL.")
@click.option(
    "--notify", "notify", multiple=True, metavar="CHANNEL", help="Tell of findings; docs/watching.md has the channels."
)
@click.option("--template", type=click.Path(path_type=Path), help="Jinja template that words what --notify tells.")
@click.option(
    "--quiet",
    multiple=True,
    metavar="HOURS",
    help='Only errors are told in these hours: "[DAYS ]HH:MM-HH:MM ZONE", as in "22:00-07:00 Europe/Berlin".',
)
@click.option(
    "--study",
    metavar="SETTINGS",
    help='Give up unpromising trials among runs that share a directory: "grace=500", objective=NAME, median, halving, '
    "patience=STEPS; see docs/tuning.md.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.05),
    default=1.0,
    show_default=True,
    help="Seconds between looks where no event comes.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Directory for the records of runs that cannot be written; $XDG_STATE_HOME/stepwatch by default.",
)
@click.option("--listen", metavar="[HOST:]PORT", help="Serve /metrics and /healthz, on 127.0.0.1 by default.")
@click.option("--otlp", metavar="URL", help="Send metrics and findings to an OpenTelemetry collector, by OTLP/HTTP.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "sagemaker"]),
    default="text",
    help="What to print: json is a line for each event and for what is logged; sagemaker is a line of JSON per run and "
    "change, its evaluation statuses as DescribeTrainingJob has them.",
)
@click.option("--once", is_flag=True, help="End when every run that is there has ended.")
@errors.one_line_errors
def command(
    directories: tuple[Path, ...],
    policy: Path | None,
    check: bool,
    rules: tuple[str, ...],
    settings: tuple[str, ...],
    stop: bool,
    profile: bool,
    answer: float,
    grace: float,
    scheduler: bool,
    dry_run: bool,
    webhook: str | None,
    notify: tuple[str, ...],
    template: Path | None,
    quiet: tuple[str, ...],
    study: str | None,
    interval: float,
    state: Path | None,
    listen: str | None,
    otlp: str | None,
    form: str,
    once: bool,
) -> None:
    """Follow live runs until Ctrl-C or SIGTERM: DIR is a run or a directory of smdebug's, or holds such at any depth.

    It may be killed and started again at any moment: no finding is missed, and no action is done twice. Of several
    that watch the same run one acts, and another takes over when it dies.

    Exit status: 1 when something was found, else 0.
    """
    from stepwatch.cli.render import console
    from stepwatch.rules.finding import Status
    from stepwatch.rules.sidecar.changes import Changes
    from stepwatch.rules.sidecar.places import default_state_dir
    from stepwatch.rules.sidecar.policy_file import PolicyFile
    from stepwatch.rules.sidecar.sidecar import Sidecar, collect_garbage_seldom
    from stepwatch.rules.sidecar.stopping import DryRun, EscalatingStop
    from stepwatch.rules.telling.courier import Courier

    if policy and (rules or settings or stop or profile or webhook or notify or template or quiet or study):
        options = "--rules, --set, --stop, --profile, --webhook, --notify, --template, --quiet, --study"
        errors.fail(f"--policy says it all: {options} go there")
    courier = Courier((state or default_state_dir()) / "outbox")
    file = PolicyFile(policy, courier) if policy else None
    spellings = [*notify, *([webhook] if webhook else [])]
    stopping = (
        DryRun() if dry_run else EscalatingStop(answer=answer, grace=grace, shout=courier.shout, scheduler=scheduler)
    )
    always = (
        None if file else _policy(rules, settings, stopping, stop, profile, spellings, template, quiet, study, courier)
    )
    out = console() if form == "text" else console(sys.stderr)
    if check:
        _explain(out, directories, file, always)
        return
    sidecar = Sidecar(list(directories), file.find if file else lambda trace: always, state)
    observers = _observers(listen, otlp, sidecar, courier)
    collect_garbage_seldom()
    found, version = False, 0
    shown = _printing(form, out)
    courier.start()
    ending = _listen_for_the_end()
    try:
        with Changes(directories, interval) as changes:
            while not ending():
                began = time.monotonic()
                if file and (news := file.reload()):
                    shown.say(news)
                if file and file.version != version:
                    version = file.version
                    sidecar.renew()
                for event in sidecar.look():
                    found |= shown.tell(event)
                    for each in observers:
                        each.see(event)
                for each in observers:
                    each.looked(time.monotonic() - began)
                if once and sidecar.all_ended():
                    break
                changes.wait(time.monotonic() - began, ending)
        if ending():
            click.echo("stepwatch: no longer watching", err=True)
    finally:
        shown.stop(Status.STOPPING)
        sidecar.close()
        shown.stop(Status.STOPPED)
        courier.close()
        for each in observers:
            each.close()
    raise SystemExit(errors.ISSUES_FOUND if found else errors.NOTHING_FOUND)


def _observers(
    listen: str | None, otlp: str | None, sidecar: Sidecar, courier: Courier
) -> list[Metrics | OpenTelemetry]:
    """Those who are told of every event, and of every look."""
    from stepwatch.rules.sidecar.metrics import Metrics
    from stepwatch.rules.sidecar.otlp import OpenTelemetry

    observers: list[Metrics | OpenTelemetry] = [Metrics(listen, sidecar, courier)] if listen else []
    return [*observers, OpenTelemetry(otlp, sidecar, courier)] if otlp else observers


def _listen_for_the_end() -> Callable[[], bool]:
    """Whether Ctrl-C was pressed, or SIGTERM came.

    An exception raised by a signal's handler may be lost where Python ignores exceptions, in a finalizer say.
    """
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        signal.signal(number, signal.default_int_handler)  # the second time it does not wait for anything

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hear)
    return lambda: bool(heard)


def _policy(
    rules: tuple[str, ...],
    settings: tuple[str, ...],
    stopping: Action,
    stop: bool,
    profile: bool,
    spellings: list[str],
    template: Path | None,
    quiet: tuple[str, ...],
    study: str | None,
    courier: Courier,
) -> Policy:
    """What the options say, for every run."""
    from stepwatch.rules.actions import ForRules
    from stepwatch.rules.catalogue import configure
    from stepwatch.rules.profiler.profiling import profile_when_slow
    from stepwatch.rules.service.actions import configured_actions
    from stepwatch.rules.sidecar.policy import Policy
    from stepwatch.rules.study.study import RULE as UNPROMISING
    from stepwatch.rules.study.study import Study, StudySettings
    from stepwatch.rules.telling.channels import channel
    from stepwatch.rules.telling.notify import NotifyAction
    from stepwatch.rules.telling.quiet import QuietHours

    specs = configure(list(rules) or None, list(settings))
    hours = QuietHours(quiet)
    if quiet and not spellings:
        errors.fail("--quiet holds back what --notify tells; expected --notify as well")
    if template and not spellings:
        errors.fail("--template words what --notify tells; expected --notify as well")
    outboxes = [courier.outbox(channel(spelling, template)) for spelling in spellings]
    actions: list[Action] = [NotifyAction(outboxes, quiet=hours)] if outboxes else []
    if stop:
        actions.append(stopping)
    if profile:
        actions.append(profile_when_slow())
    actions += configured_actions(specs, None if stop else stopping)
    if study is not None:
        actions.append(ForRules(stopping, [UNPROMISING]))
    trials = Study(StudySettings.parse(study)) if study is not None else None
    return Policy("the options", tuple(specs), tuple(actions), study=trials)


def _explain(out: Console, directories: tuple[Path, ...], file: PolicyFile | None, always: Policy | None) -> None:
    """Print each policy, and what it would do about each run that is there."""
    from stepwatch.probe.store.discovery import runs_below
    from stepwatch.probe.store.reader import Trace
    from stepwatch.rules.sidecar.policy import describe
    from stepwatch.rules.sidecar.stopping import describe_stop

    for policy in file.policies if file else [always]:
        assert policy is not None
        out.print(f"{policy.name}: {describe(policy)}", markup=False, soft_wrap=True)
    for path in [path for directory in directories for path in runs_below(directory, of_smdebug=True)]:
        trace = Trace(path)
        chosen = file.find(trace) if file else always
        line = f"{path} ({trace.status()}): {chosen.name if chosen else 'no policy is for it'}"
        if chosen and trace.live() and any(action.name.startswith("stop") for action in chosen.actions):
            line += f"; a stop {'; '.join(describe_stop(trace))}"
        out.print(line, markup=False, soft_wrap=True)


def _printing(form: str, out: Console) -> _Blocks | _Statuses | JsonLines:
    from stepwatch.cli.lines import JsonLines

    if form == "json":
        return JsonLines(sys.stdout)
    return _Blocks(out) if form == "text" else _Statuses(out)


class _Blocks:
    """Prints what happens, for people."""

    def __init__(self, out: Console) -> None:
        self._out = out

    def tell(self, event: Event) -> bool:
        """Print it; whether it is a finding."""
        from stepwatch.cli.render import finding_block
        from stepwatch.rules.sidecar.run import Ended, Found, Said

        if isinstance(event, Found):
            self._out.print(f"{event.run}:", style="bold", markup=False, soft_wrap=True)
            self._out.print(finding_block(event.finding))
            return True
        if isinstance(event, Ended):
            text = f"{event.run}: {event.status}, {event.findings} issues found"
            self._out.print(text, markup=False, soft_wrap=True)
        elif isinstance(event, Said):
            self._out.print(f"{event.run}: {event.message}", style="yellow", markup=False, soft_wrap=True)
        return False

    def say(self, text: str) -> None:
        """Something about the watcher itself."""
        self._out.print(text, style="yellow", markup=False, soft_wrap=True)

    def stop(self, status: Status) -> None:
        """Judging ends; that is said elsewhere."""


class _Statuses:
    """Prints the evaluation statuses of each run whenever one of them changes; all else goes to another console."""

    def __init__(self, out: Console) -> None:
        self._elsewhere = _Blocks(out)
        self._runs: dict[Path, EvaluationStatuses] = {}

    def tell(self, event: Event) -> bool:
        """Take it in; whether it is a finding."""
        from stepwatch.rules.service.statuses import EvaluationStatuses
        from stepwatch.rules.sidecar.run import Begun, Ended, Found

        if isinstance(event, Begun):
            self._runs[event.run] = EvaluationStatuses(event.job, event.specs)
        elif isinstance(event, Found):
            self._runs[event.run].found(event.finding)
        elif isinstance(event, Ended):
            self._runs[event.run].judged(event.results)
        else:
            return self._elsewhere.tell(event)
        self._print(event.run)
        return isinstance(event, Found)

    def say(self, text: str) -> None:
        """Something about the watcher itself."""
        self._elsewhere.say(text)

    def stop(self, status: Status) -> None:
        """The rules that have no verdict get none any more."""
        for run, statuses in self._runs.items():
            if statuses.stop(status):
                self._print(run)

    def _print(self, run: Path) -> None:
        print(json.dumps(self._runs[run].to_json()), flush=True)
