"""SageMaker's action strings: ``[{"name": "stoptraining", "training_job_prefix": "job"}, {"name": "sms", ...}]``.

An object or a list of objects, in plain JSON or with the quotes escaped as the service's SDK sends it:

* ``stoptraining`` with ``training_job_prefix``,
* ``email`` and ``sms`` with ``endpoint``, an address or a number with its country code; told through Amazon SNS, topic
  ``SMDebugRules``.

Names are told apart without regard to case. smdebug lower-cases the whole string, so that the prefix of a job's name
with capitals never matches; here prefixes and endpoints stay as they are.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.smdebug.importing import UNKNOWN_HOST
from stepwatch.rules.actions import Action, ForRules, StopAction
from stepwatch.rules.errors import RuleError
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.telling.aws import SnsChannel
from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.notice import Notice

if TYPE_CHECKING:
    from stepwatch.rules.catalogue import RuleSpec

log = logging.getLogger("stepwatch")

_PARAMETERS = {"stoptraining": "training_job_prefix", "email": "endpoint", "sms": "endpoint"}


@dataclass(frozen=True)
class Wanted:
    """What an action string asks for.

    Attributes:
        stop: whether the job is to be stopped.
        job_prefix: how the job's name begins, "" where that was left open.
        tell: (kind, endpoint) each; kind is ``email`` or ``sms``.
    """

    stop: bool = False
    job_prefix: str = ""
    tell: tuple[tuple[str, str], ...] = ()


def parse_actions(actions: Any, about: str) -> Wanted:
    """What an action string asks for; of what is unknown or lacks its parameter a line in the log says so.

    Args:
        actions: the string, or the objects that it stands for; empty for none.
        about: whose it is, for the log and for errors.

    Raises:
        RuleError: it is no JSON of actions.
    """
    if not actions:
        return Wanted()
    try:
        parsed = actions if isinstance(actions, (list, dict)) else json.loads(str(actions).replace('\\"', '"'))
        entries = [
            {str(key).lower(): value for key, value in entry.items()}
            for entry in (parsed if isinstance(parsed, list) else [parsed])
        ]
    except (ValueError, AttributeError):
        raise RuleError(f"{about}: the actions are {actions!r}; expected a list of objects with names") from None
    stop, job_prefix = False, ""
    tell: list[tuple[str, str]] = []
    for entry in entries:
        name = str(entry.get("name", "")).lower()
        if name not in _PARAMETERS:
            log.warning("%s: the action %r is unknown; expected %s", about, name, ", ".join(_PARAMETERS))
            continue
        value = str(entry.get(_PARAMETERS[name]) or "").strip()
        if name == "stoptraining":
            stop, job_prefix = True, value
        elif value:
            tell.append((name, value))
        else:
            log.warning("%s: the action %s has no endpoint and is left out", about, name)
    return Wanted(stop, job_prefix, tuple(tell))


class TellBySns:
    """Sends a finding by e-mail or SMS.

    Args:
        kind: ``email`` or ``sms``.
        endpoint: the address, or the number with its country code.

    Raises:
        ValueError: an endpoint that is not one.
        ImportError: boto3 is not installed.
    """

    at_least = Severity.INFO

    def __init__(self, kind: str, endpoint: str) -> None:
        self._channel = SnsChannel(kind, endpoint)
        self.name = self._channel.name

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Send it.

        Raises:
            SendError: SNS did not take it.
        """
        notice = Notice.of(run_dir, finding, time.time())
        return self._channel.send(Message(notice.id, (notice,)))


class StopByName:
    """Asks the job to stop; one that smdebug records, which hears of nothing, is stopped by the service.

    Args:
        action: asks the job.
        job_prefix: how the name of the SageMaker training job begins.
    """

    at_least = Severity.INFO

    def __init__(self, action: Action, job_prefix: str) -> None:
        self._action = action
        self._job_prefix = job_prefix
        self.name = action.name

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Stop it.

        Raises:
            SchedulerError: no job, or more than one, has a name that begins so; none is stopped.
        """
        if Trace(run_dir).info.host != UNKNOWN_HOST:
            return self._action.apply(finding, run_dir)
        if self.name != StopAction.name:
            return f"would stop the SageMaker training job whose name begins with {self._job_prefix}"
        from stepwatch.rules.sidecar.schedulers import stop_training_job  # which need this package
        from stepwatch.rules.sidecar.stopping import EscalatingStop

        stop = partial(stop_training_job, self._job_prefix)
        return self._action.insist(run_dir, stop) if isinstance(self._action, EscalatingStop) else stop()


def configured_actions(specs: Sequence[RuleSpec], stopping: Action | None) -> list[Action]:
    """What the configurations of rules say that is done about what they find.

    Args:
        specs: the rules.
        stopping: stops the job; None where that is decided otherwise.

    Raises:
        ValueError: an endpoint that is not one.
        ImportError: boto3 is not installed, and somebody is to be told.
    """
    actions: list[Action] = []
    if stopping is not None:
        for prefix in dict.fromkeys(spec.job_prefix for spec in specs if spec.stops):
            action = StopByName(stopping, prefix) if prefix else stopping
            names = [spec.name for spec in specs if spec.stops and spec.job_prefix == prefix]
            actions.append(ForRules(action, names))
    for kind, endpoint in dict.fromkeys(each for spec in specs for each in spec.tell):
        names = [spec.name for spec in specs if (kind, endpoint) in spec.tell]
        actions.append(ForRules(TellBySns(kind, endpoint), names))
    return actions
