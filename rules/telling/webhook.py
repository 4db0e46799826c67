"""Posts messages as JSON, signed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time

from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.posting import Endpoint


class Webhook:
    """A URL that gets messages as JSON, see :meth:`Message.body`.

    With a secret the request is signed as the Standard Webhooks specification says (headers ``webhook-id``,
    ``webhook-timestamp`` and ``webhook-signature``), so that its libraries verify it.

    Args:
        url: http or https; it may hold a secret and is therefore neither logged nor recorded.
        secret: ``whsec_`` and the key in base64, or None.
        timeout: seconds that one try may take.

    Raises:
        ValueError: the URL or the secret is not one; neither is repeated.
    """

    resolves = True

    def __init__(self, url: str, secret: str | None = None, timeout: float = 5.0) -> None:
        self._endpoint = Endpoint(url, "webhook", timeout)
        self._key = _key(secret)
        self.name = f"webhook-{hashlib.sha256(url.encode()).hexdigest()[:8]}"

    def send(self, message: Message) -> str:
        """Post it, and return what was answered.

        Raises:
            SendError: it did not arrive, or was refused; the text does not hold the URL.
        """
        body = message.body()
        headers = {"webhook-id": message.id}
        if self._key:
            stamp = str(int(time.time()))
            headers["webhook-timestamp"] = stamp
            headers["webhook-signature"] = sign(self._key, message.id, stamp, body)
        return self._endpoint.post(body, headers)


def sign(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """The value of ``webhook-signature``: HMAC-SHA256 of ``ID.TIMESTAMP.BODY``, version 1."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def _key(secret: str | None) -> bytes:
    if secret is None:
        return b""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise ValueError("the webhook's secret is not of the form whsec_BASE64")
    return key
