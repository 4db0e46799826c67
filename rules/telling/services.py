"""The services that the notification library apprise knows."""

from __future__ import annotations

import hashlib
import logging
import re
from typing import Any

from stepwatch.rules.telling.message import Message, by_rule
from stepwatch.rules.telling.notice import Notice
from stepwatch.rules.telling.outbox import Channel
from stepwatch.rules.telling.posting import SendError

_INCIDENT_KEYS = {"pagerduty": "dedup", "splunk": "entity_id", "victorops": "entity_id"}
_CLOSED_BY_HAND = ("opsgenie", "jira")  # apprise finds their incidents again only within one process
_TYPES = {"error": "failure", "warning": "warning", "info": "info", "": "success"}


def service(url: str) -> Channel:
    """A channel through apprise.

    Args:
        url: in apprise's form; it holds secrets and is neither logged nor recorded.

    Raises:
        ValueError: apprise does not know it.
        ImportError: apprise is not installed.
    """
    try:
        import apprise
    except ImportError:
        raise ImportError("telling through apprise needs it: pip install 'stepwatch[notify]'") from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its texts may hold the URL
    scheme = url.partition("://")[0].lower()
    one = apprise.Apprise.instantiate(url) if re.fullmatch(r"\w+", scheme) else None
    if one is None:
        raise ValueError("the channel is not one that apprise knows; see https://appriseit.com for their URLs")
    name = f"{scheme}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    key = _INCIDENT_KEYS.get(scheme)
    if key:
        return IncidentChannel({**(one.parse_url(url) or {}), "action": "map"}, name, key)
    return AppriseChannel(one, name, scheme not in _CLOSED_BY_HAND)


class AppriseChannel:
    """A service that takes messages for people.

    Args:
        one: the service, as apprise has it.
        name: of the channel.
        resolves: whether it is told of what no longer holds.
    """

    def __init__(self, one: Any, name: str, resolves: bool) -> None:
        self._one = one
        self.name = name
        self.resolves = resolves

    def send(self, message: Message) -> str:
        """Deliver title and text.

        Raises:
            SendError: it was not delivered.
        """
        _notify(self._one, message.title, message.text, message.severity)
        return "delivered"


class IncidentChannel:
    """A service that keeps incidents: PagerDuty, Splunk On-Call.

    What a message tells of a rule is one incident, however many runs it is about; it is closed when nothing of that
    holds any more.

    Args:
        service: its parameters, as apprise has them.
        name: of the channel.
        key: the parameter that identifies an incident.
    """

    resolves = True

    def __init__(self, service: dict[str, Any], name: str, key: str) -> None:
        self._service = service
        self._key = key
        self.name = name

    def send(self, message: Message) -> str:
        """Open an incident for each rule, and close those of which nothing holds any more.

        Raises:
            SendError: one was not taken; those that were are not opened twice by another try.
        """
        for same in by_rule(message.notices):
            part = Message(message.id, tuple(same))
            self._notify(_incident(message.id, same[0]), part.title, part.text, part.severity)
        held = {_incident(notice.message, notice) for notice in message.open}
        ended: dict[str, list[Notice]] = {}
        for notice in message.resolved:
            ended.setdefault(_incident(notice.message or message.id, notice), []).append(notice)
        closed = {incident: notices for incident, notices in ended.items() if incident not in held}
        for incident, notices in closed.items():
            part = Message(message.id, resolved=tuple(notices))
            self._notify(incident, part.title, part.text, part.severity)
        return f"{len(by_rule(message.notices))} incidents opened, {len(closed)} closed"

    def _notify(self, incident: str, title: str, text: str, severity: str) -> None:
        import apprise

        _notify(apprise.Apprise.instantiate({**self._service, self._key: incident}), title, text, severity)


def _incident(message: str, notice: Notice) -> str:
    return f"stepwatch-{message[:12]}-{notice.finding['rule']}-{notice.finding['severity']}"


def _notify(one: Any, title: str, text: str, severity: str) -> None:
    from apprise import Apprise, NotifyType

    several = Apprise()
    several.add(one)
    if not several.notify(title=title, body=text, notify_type=NotifyType(_TYPES[severity])):
        raise SendError("the service did not take it")
