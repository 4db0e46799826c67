"""Posts JSON over HTTP, signed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request

from stepwatch.rules.telling.message import Message

_WORTH_ANOTHER_TRY = (408, 425, 429)


class SendError(OSError):
    """A message was not delivered.

    Attributes:
        final: whether trying again is pointless.
    """

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


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

    def __init__(self, url: str, secret: str | None = None, timeout: float = 5.0) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("the webhook's URL is not of the form http[s]://HOST[:PORT]/PATH")
        self._url = url
        self._key = _key(secret)
        self._timeout = timeout
        self.name = f"webhook-{hashlib.sha256(url.encode()).hexdigest()[:8]}"

    def send(self, message: Message) -> str:
        """Post it, and return what was answered.

        Raises:
            SendError: it did not arrive, or was refused; the text does not hold the URL.
        """
        body = message.body()
        headers = {"Content-Type": "application/json", "User-Agent": "stepwatch", "webhook-id": message.id}
        if self._key:
            stamp = str(int(time.time()))
            headers["webhook-timestamp"] = stamp
            headers["webhook-signature"] = sign(self._key, message.id, stamp, body)
        request = urllib.request.Request(self._url, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return f"answered {answer.status}"
        except urllib.error.HTTPError as error:
            final = error.code < 500 and error.code not in _WORTH_ANOTHER_TRY
            raise SendError(f"answered {error.code}", final=final) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise SendError(_spell_failure(error)) from None


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


def _spell_failure(error: Exception) -> str:
    """What went wrong on the way, without texts of the libraries in which the URL may stand."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    system = reason.strerror if isinstance(reason, OSError) else None
    return system or type(reason).__name__
