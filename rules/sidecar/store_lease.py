"""Which of several sidecars, on different machines, acts on a run in an object store."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from stepwatch.probe.store.identity import process_identity
from stepwatch.probe.store.remote import url_of
from stepwatch.rules.sidecar.lease import Lease

if TYPE_CHECKING:
    from botocore.client import BaseClient

log = logging.getLogger("stepwatch")

_RENEW_SECONDS = 10.0
_LAPSE_SECONDS = 60.0
_CHANGED = (409, 412)
_NO_CONDITIONS = (501,)
_ANY = ""  # the version of an object in a store that knows no conditions


class StoreLease(Lease):
    """A lease that holds between machines as well: an object in S3 that is written on conditions.

    It is made only where there is none, and replaced only by who knows its latest version. Who holds it renews it every
    ten seconds; another takes it when it has seen it unchanged for a minute, by its own clock, which goes on while the
    machine sleeps. Who could not renew it for that long does not act before it has been told that it still holds it.
    On one machine it is the lock on a file that decides, as for any other run.

    Args:
        folder: where that file is.
        url: of the run.

    Raises:
        ImportError: boto3 is not installed.
    """

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self._client, self._bucket, prefix = _open(url)
        self._key = f"{prefix}/control/watch.lease"
        self._token = uuid.uuid4().hex
        self._beat = 0
        self._there: str | None = None  # the version that is ours
        self._renewed = self._asked = self._seen_at = -_LAPSE_SECONDS
        self._seen: str | None = None
        self._other = self._trouble = ""

    @property
    def held(self) -> bool:
        """Whether this process acts."""
        return super().held and self._there is not None

    def acquire(self) -> bool:
        """Take it if nobody else has it, and renew it when it is time; whether it is held now.

        Raises:
            OSError: the file cannot be made.
        """
        if not super().acquire():
            return False
        now = _now()
        if self._there == _ANY:
            return True
        if self._there is not None and now - self._renewed < _RENEW_SECONDS:
            return True
        if self._there is None and now - self._asked < _RENEW_SECONDS:
            return False
        self._asked = now
        try:
            if self._there is not None:
                self._take(now, IfMatch=self._there)
            if self._there is None:
                self._look(now)
            self._trouble = ""
        except OSError as error:
            if str(error) != self._trouble:  # said once
                log.warning("s3://%s/%s: nothing is done without the lease: %s", self._bucket, self._key, error)
            self._trouble = str(error)
        return self._there is not None and now - self._renewed < _LAPSE_SECONDS

    def holder(self) -> str:
        """Who took it last, in words."""
        return (self._other or "a sidecar on another machine") if super().held else super().holder()

    def release(self) -> None:
        """Let another act."""
        if super().held and self._there:
            try:
                self._put({"holder": ""}, IfMatch=self._there)
            except OSError as error:
                log.debug("%s: %s", self._key, error)
        self._there = None
        super().release()

    def _look(self, now: float) -> None:
        """Take it if it may be taken."""
        found = self._get()
        if found is None:
            self._take(now, IfNoneMatch="*")
            return
        version, content = found
        if version != self._seen:
            self._seen, self._seen_at = version, now
        self._other = str(content.get("holder") or "")
        if content.get("token") == self._token:  # ours: that it was written was not heard
            self._there, self._renewed = version, now
        elif not self._other or now - self._seen_at >= _LAPSE_SECONDS:
            self._take(now, IfMatch=version)

    def _take(self, now: float, **condition: str) -> None:
        self._beat += 1
        identity = process_identity()
        holder = f"process {identity['pid']} of {identity['user']} on {identity['host']}"
        self._there = self._put({"holder": holder, "token": self._token, "beat": self._beat}, **condition)
        if self._there is not None:
            self._renewed = now

    def _get(self) -> tuple[str, dict[str, Any]] | None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found = self._client.get_object(Bucket=self._bucket, Key=self._key)
            content = json.loads(found["Body"].read())
            return found["ETag"], content if isinstance(content, dict) else {}
        except ClientError as error:
            if _status(error) == 404:
                return None
            raise OSError(str(error)) from None
        except (BotoCoreError, ValueError) as error:
            raise OSError(str(error)) from None

    def _put(self, content: dict[str, Any], **condition: str) -> str | None:
        """The version that was written, or None where the condition does not hold."""
        from botocore.exceptions import BotoCoreError, ClientError

        body = json.dumps(content).encode()
        try:
            written = self._client.put_object(Bucket=self._bucket, Key=self._key, Body=body, **condition)
        except ClientError as error:
            if _status(error) in _CHANGED:
                return None
            if _status(error) in _NO_CONDITIONS:
                log.warning("s3://%s: it writes on no conditions; a second sidecar would act as well", self._bucket)
                return _ANY
            raise OSError(str(error)) from None
        except BotoCoreError as error:
            raise OSError(str(error)) from None
        return str(written["ETag"])


def _status(error: Any) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _open(url: str) -> tuple[BaseClient, str, str]:
    """A client, the bucket and the prefix of an ``s3://`` URL as pyarrow has it."""
    import boto3
    from botocore.config import Config

    parts = urlsplit(url)
    options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    endpoint = options.get("endpoint_override")
    client = boto3.client(
        "s3",
        region_name=options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        endpoint_url=f"{options.get('scheme', 'https')}://{endpoint}" if endpoint else None,
        aws_access_key_id=unquote(parts.username) if parts.username else None,
        aws_secret_access_key=unquote(parts.password) if parts.password else None,
        config=Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 1}),
    )
    return client, parts.hostname or "", parts.path.strip("/")


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def lease_of(run_dir: Path, folder: Path) -> Lease:
    """The lease of a run: one between machines where it is a copy of a run in S3, else the lock on a file.

    Args:
        run_dir: the run.
        folder: where the lock's file is.
    """
    url = url_of(run_dir)
    if url is None or not url.startswith("s3://"):
        return Lease(folder)
    try:
        return StoreLease(folder, url)
    except ImportError:
        log.warning(
            "%s: without boto3 (pip install 'stepwatch[aws]') a sidecar on another machine would act as well", run_dir
        )
        return Lease(folder)
