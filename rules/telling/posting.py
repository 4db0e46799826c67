"""Posts JSON over HTTP."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

_WORTH_ANOTHER_TRY = (408, 425, 429)


class SendError(OSError):
    """A message was not delivered.

    Attributes:
        final: whether trying again is pointless.
    """

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class Endpoint:
    """A URL to which JSON is posted.

    Args:
        url: http or https; a user and a password in it are sent as basic authentication. It may hold secrets and is
            therefore neither logged nor recorded.
        what: what it belongs to, for messages.
        timeout: seconds that one try may take.

    Raises:
        ValueError: the URL is not one; it is not repeated.
    """

    def __init__(self, url: str, what: str, timeout: float = 5.0) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"the {what}'s URL is not of the form http[s]://HOST[:PORT]/PATH")
        self._url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._headers = {"Content-Type": "application/json", "User-Agent": "stepwatch"}
        if parts.username is not None:
            user = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
            self._headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        self._timeout = timeout

    def post(self, body: bytes, headers: Mapping[str, str] | None = None, path: str = "") -> str:
        """Post it below the URL, and return what was answered, in words.

        Raises:
            SendError: it did not arrive, or was refused; the text does not hold the URL.
        """
        request = urllib.request.Request(
            self._url.rstrip("/") + path if path else self._url, data=body, headers={**self._headers, **(headers or {})}
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return f"answered {answer.status}"
        except urllib.error.HTTPError as error:
            final = error.code < 500 and error.code not in _WORTH_ANOTHER_TRY
            raise SendError(f"answered {error.code}", final=final) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise SendError(_spell_failure(error)) from None


def encode(content: Any) -> bytes:
    """As JSON.

    Raises:
        ValueError: it holds a number that JSON has not.
    """
    return json.dumps(content, allow_nan=False).encode()


def _spell_failure(error: Exception) -> str:
    """What went wrong on the way, without texts of the libraries in which the URL may stand."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    system = reason.strerror if isinstance(reason, OSError) else None
    return system or type(reason).__name__
