"""E-mail and SMS through Amazon SNS, as SageMaker Debugger has them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.posting import SendError

_TOPIC = "SMDebugRules"
_MAX_SUBJECT = 100


class SnsChannel:
    """E-mail or SMS through Amazon SNS, in the form of SageMaker Debugger's built-in actions.

    Args:
        kind: "email" or "sms".
        endpoint: the address, or the number with its country code.

    Raises:
        ValueError: an endpoint that is not one.
        ImportError: boto3 is not installed.
    """

    resolves = False

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
        rules = sorted({notice.finding["rule"] for notice in message.notices or message.resolved})
        return self.publish(
            f"SMDebugRule:{', '.join(rules)} {'fired' if message.notices else 'resolved'}", message.text
        )

    def publish(self, subject: str, text: str) -> str:
        """The same for a text of any kind.

        Raises:
            SendError: SNS did not take it.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._topic is None:
                self._topic = self._subscribed_topic()
            self._client.publish(
                TopicArn=self._topic,
                Subject=subject[:_MAX_SUBJECT],
                Message=f"{subject}. {text}",
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
