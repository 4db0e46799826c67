"""What is done about which runs: rules, actions and severities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from stepwatch.probe.store.labels import read_labels
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.actions import Action, ForRules
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.study.study import Study
from stepwatch.rules.telling.notify import NotifyAction

_MOST_NAMES = 10


@dataclass(frozen=True)
class Policy:
    """What is done about the runs that it is for; a list that is empty matches every run.

    Attributes:
        name: for people.
        runs: patterns of job names.
        directories: patterns of the runs' directories.
        users: names of the users whose processes write the runs.
        tags: patterns of which one of the run's tags matches one.
        specs: the rules.
        severities: of findings of these rules, instead of their own.
        actions: what to do about findings.
        study: makes studies of the runs that share their parent directory; None: they are runs of their own.
    """

    name: str
    specs: tuple[RuleSpec, ...]
    actions: tuple[Action, ...] = ()
    runs: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    severities: Mapping[str, Severity] = field(default_factory=dict)
    study: Study | None = None

    def matches(self, trace: Trace) -> bool:
        """Whether it is for this run."""
        users = {str(entry.get("user", "")) for rank in trace.ranks for entry in trace.attempts(rank).entries[-1:]}
        return (
            _any_matches(self.runs, trace.info.job_name)
            and _any_matches(self.directories, str(trace.path.resolve()))
            and (not self.users or not users.isdisjoint(self.users))
            and (not self.tags or any(_any_matches(self.tags, tag) for tag in read_labels(trace.path).tags))
        )

    def judge(self, finding: Finding) -> Finding:
        """The finding with the severity that it has here."""
        severity = self.severities.get(finding.rule)
        return replace(finding, severity=severity) if severity is not None else finding


def describe(policy: Policy) -> str:
    """A policy in words."""
    matched = {"named": policy.runs, "in": policy.directories, "of": policy.users, "tagged": policy.tags}
    limits = [f"{what} {' or '.join(values)}" for what, values in matched.items() if values]
    names = [spec.name for spec in policy.specs]
    named = ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if (more := len(names) - _MOST_NAMES) > 0 else "")
    rules = f"{len(names)} rule{'' if len(names) == 1 else 's'} ({named})"
    actions = [_describe(action) for action in policy.actions] or ["nothing is done"]
    severities = [f"{rule} is {severity.value}" for rule, severity in policy.severities.items()]
    study = [policy.study.settings.describe()] if policy.study is not None else []
    parts = [f"runs {' and '.join(limits)}" if limits else "all runs", rules, *severities, *study, *actions]
    return "; ".join(parts)


def _describe(action: Action) -> str:
    if isinstance(action, ForRules):
        return f"{action.name} on {', '.join(sorted(action.rules))}"
    quiet = action.quiet.spellings if isinstance(action, NotifyAction) else ()
    return f"{action.name} from {action.at_least.value}" + (f", quiet {', '.join(quiet)}" if quiet else "")


def _any_matches(patterns: Sequence[str], text: str) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)
