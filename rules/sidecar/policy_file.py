"""Policies from a file that may change while it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.actions import Action, ForRules, LogAction
from stepwatch.rules.catalogue import RuleSpec, configure
from stepwatch.rules.errors import RuleError
from stepwatch.rules.finding import Severity
from stepwatch.rules.service.actions import configured_actions
from stepwatch.rules.sidecar.hangs import RULE as HANG
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.positions import FileError, Place, read
from stepwatch.rules.sidecar.stopping import DryRun, EscalatingStop
from stepwatch.rules.study.study import KEYS as STUDY_KEYS
from stepwatch.rules.study.study import RULE as UNPROMISING
from stepwatch.rules.study.study import Study, StudySettings
from stepwatch.rules.telling.channels import channel
from stepwatch.rules.telling.courier import Courier
from stepwatch.rules.telling.notify import NotifyAction
from stepwatch.rules.telling.outbox import GATHER_SECONDS
from stepwatch.rules.telling.quiet import QuietHours

_POLICY = ("name", "runs", "directories", "users", "tags", "rules", "set", "severity", "study", "stop", "notify", "log")
_STOP = ("at_least", "answer", "grace", "scheduler", "dry_run")
_NOTIFY = ("channel", "template", "at_least", "gather", "quiet", "breaks_through", "resolved")


class PolicyFile:
    """The policies of a .toml or .yaml file; the first that matches a run is the one for it.

    Args:
        path: the file.
        courier: delivers what is to be told.

    Attributes:
        policies: in the order of the file.
        version: how often the file was read again.

    Raises:
        FileError: something in it is not as described in docs/watching.md; the message names the line.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, courier: Courier) -> None:
        self._path = path
        self._courier = courier
        self._stamp = self._stat()
        self.policies = _Reader(path, courier).policies()
        self.version = 0

    def reload(self) -> str:
        """Read it again if it has changed; what to say about that, or "".

        Where the new content cannot be used, the old policies stay.
        """
        try:
            stamp = self._stat()
            if stamp == self._stamp:
                return ""
            self._stamp = stamp
            self.policies = _Reader(self._path, self._courier).policies()
        except FileNotFoundError:
            return ""  # an editor may be about to put it back
        except (FileError, OSError) as error:
            return f"{error}; the policies from before stay in force"
        self.version += 1
        return f"{self._path}: read again, {len(self.policies)} policies"

    def find(self, trace: Trace) -> Policy | None:
        """The policy for a run."""
        return next((policy for policy in self.policies if policy.matches(trace)), None)

    def _stat(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_ino


class _Reader:
    """Turns the content of a policy file into policies."""

    def __init__(self, path: Path, courier: Courier) -> None:
        self._path = path
        self._courier = courier
        self._content, self._lines = read(path)

    def policies(self) -> list[Policy]:
        """All of them, in order."""
        self._known(self._content, (), ("policy",))
        entries = self._content.get("policy")
        if not isinstance(entries, list) or not entries:
            self._fail((), "holds no policy; expected [[policy]] tables, or in YAML a list under policy:")
        return [self._policy(self._table(entry, ("policy", n)), ("policy", n)) for n, entry in enumerate(entries)]

    def _policy(self, entry: dict[str, Any], place: Place) -> Policy:
        self._known(entry, place, _POLICY)
        spelled = list(_settings(self._table(entry.get("set", {}), (*place, "set"))))
        rules = self._texts(entry, "rules", place) or ("recommended",)
        try:
            specs = configure(list(rules))
        except RuleError as error:
            self._fail((*place, "rules"), str(error))
        try:
            specs = configure(list(rules), spelled)
        except RuleError as error:
            self._fail((*place, "set"), str(error))
        return Policy(
            name=str(entry.get("name", f"policy {int(place[-1]) + 1}")),
            specs=tuple(specs),
            actions=tuple(self._actions(entry, place, specs)),
            runs=self._texts(entry, "runs", place),
            directories=self._texts(entry, "directories", place),
            users=self._texts(entry, "users", place),
            tags=self._texts(entry, "tags", place),
            study=self._study(entry, place),
            severities=self._severities(entry, place, specs),
        )

    def _severities(self, entry: dict[str, Any], place: Place, specs: Sequence[RuleSpec]) -> dict[str, Severity]:
        table = self._table(entry.get("severity", {}), (*place, "severity"))
        names = (*(spec.name for spec in specs), HANG, UNPROMISING)
        self._known(table, (*place, "severity"), names, "rule")
        return {rule: self._severity(table, rule, (*place, "severity"), Severity.ERROR) for rule in table}

    def _actions(self, entry: dict[str, Any], place: Place, specs: Sequence[RuleSpec]) -> list[Action]:
        actions: list[Action] = []
        if self._flag(entry, "log", place):
            actions.append(LogAction())
        notify = entry.get("notify", [])
        if not isinstance(notify, list):
            self._fail((*place, "notify"), f"notify is {notify!r}; expected a list of channels or of tables")
        actions += [self._notify(each, (*place, "notify", n)) for n, each in enumerate(notify)]
        stop = entry.get("stop")
        stopping = EscalatingStop(shout=self._courier.shout) if stop is None else None
        actions += configured_actions(specs, stopping)
        if stop not in (None, False):
            actions.append(self._stop(stop, (*place, "stop")))
        if "study" in entry and stop is not False:
            giving_up = self._stop(True if stop is None else stop, (*place, "stop"))
            actions.append(ForRules(giving_up, [UNPROMISING]))
        return actions

    def _study(self, entry: dict[str, Any], place: Place) -> Study | None:
        if "study" not in entry:
            return None
        place = (*place, "study")
        table = self._table(entry["study"], place)
        self._known(table, place, STUDY_KEYS)
        try:
            return Study(StudySettings.of(table))
        except ValueError as error:
            self._fail((*place, str(error).split()[0]), str(error))

    def _stop(self, entry: Any, place: Place) -> Action:
        table = {} if entry is True else self._table(entry, place)
        self._known(table, place, _STOP)
        at_least = self._severity(table, "at_least", place, Severity.ERROR)
        if self._flag(table, "dry_run", place):
            return DryRun(at_least)
        answer, grace = (self._seconds(table, key, place, default) for key, default in (("answer", 60), ("grace", 30)))
        return EscalatingStop(
            answer=answer,
            grace=grace,
            at_least=at_least,
            shout=self._courier.shout,
            scheduler=self._flag(table, "scheduler", place),
        )

    def _notify(self, entry: Any, place: Place) -> NotifyAction:
        table = {"channel": entry} if isinstance(entry, str) else self._table(entry, place)
        self._known(table, place, _NOTIFY)
        if not isinstance(table.get("channel"), str):
            self._fail(place, 'names no channel; expected channel = "..."')
        try:
            outbox = self._courier.outbox(channel(table["channel"], self._beside(table, "template", place)))
        except (ValueError, ImportError) as error:
            self._fail(place, str(error))
        return NotifyAction(
            [outbox],
            self._severity(table, "at_least", place, Severity.WARNING),
            name=f"notify {outbox.name}",
            gather=self._seconds(table, "gather", place, GATHER_SECONDS),
            quiet=self._quiet(table, place),
            resolved=self._flag(table, "resolved", place) if "resolved" in table else None,
        )

    def _beside(self, table: dict[str, Any], key: str, place: Place) -> Path | None:
        """A file that is named relative to this one."""
        value = table.get(key)
        if value is not None and not isinstance(value, str):
            self._fail((*place, key), f"{key} is {value!r}; expected the name of a file")
        return None if value is None else self._path.parent / value

    def _quiet(self, table: dict[str, Any], place: Place) -> QuietHours:
        never = table.get("breaks_through") == "never"
        breaks_through = None if never else self._severity(table, "breaks_through", place, Severity.ERROR)
        try:
            return QuietHours(self._texts(table, "quiet", place), breaks_through)
        except ValueError as error:
            self._fail((*place, "quiet"), str(error))

    # -- values -----------------------------------------------------------------------------------------

    def _known(self, table: Mapping[str, Any], place: Place, names: Sequence[str], what: str = "key") -> None:
        for key in table:
            if key not in names:
                near = get_close_matches(str(key), names, 1)
                hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
                self._fail((*place, key), f"{key!r} is an unknown {what}; {hint}")

    def _table(self, value: Any, place: Place) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(place, f"{place[-1]} is {value!r}; expected a table")
        return dict(value)

    def _texts(self, table: Mapping[str, Any], key: str, place: Place) -> tuple[str, ...]:
        value = table.get(key, [])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            self._fail((*place, key), f"{key} is {value!r}; expected a list of texts")
        return tuple(values)

    def _severity(self, table: Mapping[str, Any], key: str, place: Place, default: Severity) -> Severity:
        value = table.get(key, default.value)
        if value not in [each.value for each in Severity]:
            self._fail((*place, key), f"{key} is {value!r}; expected info, warning or error")
        return Severity(value)

    def _seconds(self, table: Mapping[str, Any], key: str, place: Place, default: float) -> float:
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            self._fail((*place, key), f"{key} is {value!r}; expected seconds, 0 or more")
        return float(value)

    def _flag(self, table: Mapping[str, Any], key: str, place: Place) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            self._fail((*place, key), f"{key} is {value!r}; expected true or false")
        return value

    def _fail(self, place: Place, text: str) -> NoReturn:
        """Raise an error that names the line of a place, or of what it is in."""
        while place and place not in self._lines:
            place = place[:-1]
        raise FileError(self._path, self._lines.get(place, 0), text)


def _settings(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """``Rule.parameter=value`` of each, whether written so or as a table for the rule."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={_spell(value)}"


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
