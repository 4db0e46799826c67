"""Channels by their spelling: URLs of webhooks and of notification services, e-mail and SMS through SNS."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from pathlib import Path
from typing import Any

from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.outbox import Channel
from stepwatch.rules.telling.webhook import SendError, Webhook

_TOPIC = "SMDebugRules"
_MAX_SUBJECT = 100


def channel(spelling: str) -> Channel:
    """A channel.

    Args:
        spelling: ``http://`` or ``https://`` for a webhook, signed where STEPWATCH_WEBHOOK_SECRET holds a secret;
            ``sns-email:ADDRESS`` or ``sns-sms:+NUMBER``; or a URL of the notification library apprise
            (``slack://``, ``mailto://``, ``ntfy://`` ...). ``env:NAME`` and ``file:PATH`` stand for a spelling
            that is kept there, because it holds a secret.

    Raises:
        ValueError: it is none of these, or nobody but its owner should be able to read the file.
        ImportError: a library that it needs is not installed.
    """
    spelling = _secret(spelling)
    if spelling.startswith(("http://", "https://")):
        return Webhook(spelling, os.environ.get("STEPWATCH_WEBHOOK_SECRET"))
    if spelling.startswith(("sns-email:", "sns-sms:")):
        kind, _, endpoint = spelling.partition(":")
        return SnsChannel(kind.removeprefix("sns-"), endpoint)
    return AppriseChannel(spelling)


class AppriseChannel:
    """One of the services that the notification library apprise knows.

    Args:
        url: in its form; it holds secrets and is neither logged nor recorded.

    Raises:
        ValueError: apprise does not know it.
        ImportError: apprise is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import apprise
        except ImportError:
            raise ImportError("telling through apprise needs it: pip install 'stepwatch[notify]'") from None
        logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its texts may hold the URL
        self._apprise = apprise.Apprise()
        scheme = url.partition("://")[0]
        if not re.fullmatch(r"\w+", scheme) or not self._apprise.add(url):
            raise ValueError("the channel is not one that apprise knows; see https://appriseit.com for their URLs")
        self.name = f"{scheme}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"

    def send(self, message: Message) -> str:
        """Deliver title and text.

        Raises:
            SendError: it was not delivered.
        """
        if not self._apprise.notify(title=message.title, body=message.text):
            raise SendError("the service did not take it")
        return "delivered"


class SnsChannel:
    """E-mail or SMS through Amazon SNS, in the form of SageMaker Debugger's built-in actions.

    Args:
        kind: "email" or "sms".
        endpoint: the address, or the number with its country code.

    Raises:
        ValueError: an endpoint that is not one.
        ImportError: boto3 is not installed.
    """

    def __init__(self, kind: str, endpoint: str) -> None:
        form = r"\+\d{1,15}" if kind == "sms" else r"[^@\s]+@[^@\s]+\.[^@\s]+"
        if not re.fullmatch(form, endpoint):
            raise ValueError(f"sns-{kind}:{endpoint}: expected {'+NUMBER' if kind == 'sms' else 'an e-mail address'}")
        self._client = aws_client("sns")
        self._kind = kind
        self._endpoint = endpoint
        self._attribute = "phone_num" if kind == "sms" else "email"
        self._topic: str | None = None
        self.name = f"sns-{kind}-{hashlib.sha256(endpoint.encode()).hexdigest()[:8]}"

    def send(self, message: Message) -> str:
        """Publish it to the topic ``SMDebugRules``, which is made if it is missing, as is the subscription.

        Raises:
            SendError: SNS did not take it.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        rules = sorted({item["finding"]["rule"] for item in message.items})
        fired = f"SMDebugRule:{', '.join(rules)} fired"
        try:
            if self._topic is None:
                self._topic = self._subscribed_topic()
            self._client.publish(
                TopicArn=self._topic,
                Subject=fired[:_MAX_SUBJECT],
                Message=f"{fired}. {message.text}",
                MessageAttributes={self._attribute: {"DataType": "String", "StringValue": self._endpoint}},
            )
        except (BotoCoreError, ClientError) as error:
            raise SendError(f"{type(error).__name__}: {error}") from None
        return "published"

    def _subscribed_topic(self) -> str:
        topic = str(self._client.create_topic(Name=_TOPIC)["TopicArn"])
        pages = self._client.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=topic)
        known = {(each["Protocol"], each["Endpoint"]) for page in pages for each in page["Subscriptions"]}
        if (self._kind, self._endpoint) not in known:
            policy = json.dumps({self._attribute: [self._endpoint]})
            self._client.subscribe(
                TopicArn=topic, Protocol=self._kind, Endpoint=self._endpoint, Attributes={"FilterPolicy": policy}
            )
        return topic


def aws_client(service: str) -> Any:
    """A client of an AWS service in the region of AWS_REGION, us-east-1 by default.

    Raises:
        ImportError: boto3 is not installed.
    """
    try:
        import boto3
    except ImportError:
        raise ImportError("AWS needs boto3: pip install 'stepwatch[aws]'") from None
    return boto3.client(service, region_name=os.environ.get("AWS_REGION", "us-east-1"))


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
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError(f"{spelling}: others can read it; expected: chmod 600")
        return path.read_text().strip()
    return spelling
