"""Alerts for Prometheus' Alertmanager, which groups, routes and silences them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import Any

from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.notice import Notice, iso
from stepwatch.rules.telling.posting import Endpoint, encode

_PATH = "/api/v2/alerts"
# Without a confirmation; and at least, since an alert that ends before its group was sent is told to nobody.
# The same for both: of two ends that are still to come Alertmanager takes the later.
_HOLDS_SECONDS = 900.0


class Alertmanager:
    """An Alertmanager with API version 2.

    What a rule finds in a run is one alert with the labels ``alertname`` (the rule), ``severity``, ``job`` (the job's
    name), ``run`` (its directory) and ``run_id``. It ends when the run does, or with what was found, after a quarter of
    an hour at the earliest, so that somebody hears of it; and as long after the watcher has ceased to confirm it.

    Args:
        url: up to the path that ``/api/v2/alerts`` is added to; a user and a password in it are sent.

    Raises:
        ValueError: the URL is not one.
    """

    resolves = True

    def __init__(self, url: str) -> None:
        self._endpoint = Endpoint(url, "Alertmanager")
        self.name = f"alertmanager-{hashlib.sha256(url.encode()).hexdigest()[:8]}"

    def send(self, message: Message) -> str:
        """Post an alert for each run and rule, and the ends of those of which nothing holds any more.

        Raises:
            SendError: it did not arrive, or was refused.
        """
        begun = _alerts(message.notices)
        held = begun.keys() | _alerts(message.open).keys()
        ended = {key: alert for key, alert in _alerts(message.resolved).items() if key not in held}
        return self._post([*begun.values(), *ended.values()])

    def confirm(self, notices: list[Notice]) -> None:
        """These still hold.

        Raises:
            SendError: it did not arrive, or was refused.
        """
        self._post(list(_alerts(notices).values()))

    def _post(self, alerts: list[dict[str, Any]]) -> str:
        return self._endpoint.post(encode(alerts), path=_PATH) if alerts else "more of the same still holds"


def _alerts(notices: Iterable[Notice]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Alerts by their labels, each of the first notice that it is about."""
    alerts: dict[tuple[str, ...], dict[str, Any]] = {}
    for notice in sorted(notices, key=lambda notice: notice.time):
        labels = {
            "alertname": str(notice.finding["rule"]),
            "severity": str(notice.finding["severity"]),
            "job": notice.job_name,
            "run": notice.run,
            "run_id": notice.run_id,
        }
        alert = {
            "labels": {name: value for name, value in labels.items() if value},
            "annotations": {
                "summary": f"{notice.job_name}: {notice.finding['message']}",
                "description": f"At step {notice.finding['first_step']}. Try: {notice.finding['suggestion']}",
            },
            "startsAt": iso(notice.time),
            "endsAt": iso(_end(notice)),
        }
        alerts.setdefault(tuple(labels.values()), alert)
    return alerts


def _end(notice: Notice) -> float:
    if notice.how:
        return max(notice.resolved, notice.time + _HOLDS_SECONDS)
    return time.time() + _HOLDS_SECONDS
