"""Channels by their spelling: webhooks, notification services, Alertmanager, e-mail and SMS through SNS."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stepwatch.rules.telling.alertmanager import Alertmanager
from stepwatch.rules.telling.aws import SnsChannel
from stepwatch.rules.telling.outbox import Channel
from stepwatch.rules.telling.services import service
from stepwatch.rules.telling.template import InOwnWords
from stepwatch.rules.telling.webhook import Webhook


def channel(spelling: str, template: Path | None = None) -> Channel:
    """A channel.

    Args:
        spelling: ``http://`` or ``https://`` for a webhook, signed where STEPWATCH_WEBHOOK_SECRET holds a secret;
            ``alertmanager:URL``; ``sns-email:ADDRESS`` or ``sns-sms:+NUMBER``; or a URL of the notification library
            apprise (``slack://``, ``mailto://``, ``pagerduty://`` ...). ``env:NAME`` and ``file:PATH`` stand for a
            spelling that is kept there, because it holds a secret.
        template: a file that words its messages, see :class:`InOwnWords`.

    Raises:
        ValueError: it is none of these, or somebody else than its owner can read the file; a template that cannot be
            used.
        ImportError: a library that it needs is not installed.
    """
    found = _channel(_secret(spelling))
    return found if template is None else InOwnWords(found, template)


def _channel(spelling: str) -> Channel:
    if spelling.startswith(("http://", "https://")):
        return Webhook(spelling, os.environ.get("STEPWATCH_WEBHOOK_SECRET"))
    if spelling.startswith("alertmanager:"):
        return Alertmanager(spelling.removeprefix("alertmanager:"))
    if spelling.startswith(("sns-email:", "sns-sms:")):
        kind, _, endpoint = spelling.partition(":")
        return SnsChannel(kind.removeprefix("sns-"), endpoint)
    return service(spelling)


def _secret(spelling: str) -> str:
    """What ``env:NAME`` or ``file:PATH`` stands for."""
    kind, _, place = spelling.partition(":")
    if kind == "env":
        if not os.environ.get(place):
            raise ValueError(f"{spelling}: there is no such environment variable, or it is empty")
        return os.environ[place]
    if kind == "file" and not place.startswith("//"):
        path = Path(place)
        if not path.is_file():
            raise ValueError(f"{spelling}: no such file")
        status = path.stat()
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError(f"{spelling}: others can read it; expected: chmod 600")
        if status.st_uid not in (os.geteuid(), 0):
            raise ValueError(f"{spelling}: belongs to another user, number {status.st_uid}; expected one of yours")
        return path.read_text().strip()
    return spelling
