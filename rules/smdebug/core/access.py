"""Files of a job, in a directory or in S3: written whole, read, listed, removed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from stepwatch.probe.smdebug.errors import SMDebugError
from stepwatch.rules.smdebug.core.constants import (
    DEFAULT_GRACETIME_FOR_RULE_STOP_SEC,
    END_OF_JOB_FILENAME,
    ENV_RULE_STOP_SIGNAL_FILENAME,
    SMDEBUG_TEMP_PATH_SUFFIX,
)
from stepwatch.rules.smdebug.core.utils import ensure_dir, is_s3
from stepwatch.rules.telling.aws import aws_client

_GRACE_VARIABLE = "rule_stop_grace_time_secs"
WRITE_MODES = ["w", "w+", "wb", "wb+", "a", "a+", "ab", "ab+"]


def get_temp_path(file_path: str) -> str:
    """Where a file is written until it is whole."""
    return file_path + SMDEBUG_TEMP_PATH_SUFFIX


class TSAccessFile:
    """A file in a directory; one that is written has its name when it is closed.

    Args:
        path: the file.
        mode: as for ``open``.
    """

    def __init__(self, path: str, mode: str) -> None:
        self.path = path
        self.mode = mode
        self._place = get_temp_path(path) if mode in WRITE_MODES else path
        if mode in WRITE_MODES:
            ensure_dir(path)
        self._accessor: Any = open(self._place, mode)  # noqa: SIM115 - closed by close()

    def write(self, content: Any) -> list[int]:
        """Write; returns where and how much."""
        start = self._accessor.tell()
        self._accessor.write(content)
        return [start, len(content)]

    def read(self, n: int = -1) -> Any:
        """Read so much."""
        return self._accessor.read(n)

    def ingest_all(self) -> None:
        """Nothing: a file is read as it is asked for."""

    def has_data(self) -> bool:
        """Whether there is more to read."""
        return bool(self._accessor.tell() < os.fstat(self._accessor.fileno()).st_size)

    def flush(self) -> None:
        """Hand it to the system."""
        self._accessor.flush()

    def close(self) -> None:
        """Close it; what was written has its name from now on."""
        if self._accessor.closed:
            return
        self._accessor.close()
        if self.mode in WRITE_MODES:
            os.replace(self._place, self.path)

    def __enter__(self) -> TSAccessFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class TSAccessS3:
    """An object in S3; one that is written is there when it is closed.

    Args:
        bucket_name, key_name: the object.
        aws_access_key_id, aws_secret_access_key: not used: boto3 finds credentials itself.
        binary: whether it is read and written as bytes.
    """

    def __init__(
        self,
        bucket_name: str,
        key_name: str,
        aws_access_key_id: str | None = None,
        aws_secret_access_key: str | None = None,
        binary: bool = True,
    ) -> None:
        self.bucket_name, self.key_name, self.binary = bucket_name, key_name, binary
        self._client = aws_client("s3")
        self.data = bytearray()
        self._at = 0
        self._written = False

    def write(self, content: Any) -> list[int]:
        """Write; returns where and how much."""
        start = len(self.data)
        self.data += content if isinstance(content, (bytes, bytearray)) else str(content).encode()
        self._written = True
        return [start, len(self.data) - start]

    def ingest_all(self) -> None:
        """Read all of it."""
        self.data = bytearray(self._client.get_object(Bucket=self.bucket_name, Key=self.key_name)["Body"].read())
        self._at = 0

    def read(self, n: int = -1) -> Any:
        """So much of what was read."""
        end = len(self.data) if n < 0 else self._at + n
        found = bytes(self.data[self._at : end])
        self._at += len(found)
        return found if self.binary else found.decode()

    def has_data(self) -> bool:
        """Whether there is more of it."""
        return self._at < len(self.data)

    def flush(self) -> None:
        """Nothing: an object is written whole."""

    def close(self) -> None:
        """Put what was written there."""
        if self._written:
            self._client.put_object(Bucket=self.bucket_name, Key=self.key_name, Body=bytes(self.data))
            self._written = False

    def __enter__(self) -> TSAccessS3:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class ReadObjectRequest:
    """Bytes of an object at ``s3://bucket/key``."""

    def __init__(self, path: str, start: int | None = None, length: int | None = None) -> None:
        there, self.bucket, self.key = is_s3(path)
        if not there:
            raise SMDebugError(f"{path}: expected s3://BUCKET/KEY")
        self.start = start
        self.length = length


class ListRequest:
    """Objects under a prefix."""

    def __init__(self, Bucket: str, Prefix: str = "", Delimiter: str = "", StartAfter: str = "") -> None:
        self.Bucket, self.Prefix, self.Delimiter, self.StartAfter = Bucket, Prefix, Delimiter, StartAfter


class DeleteRequest:
    """All objects under a prefix."""

    def __init__(self, Bucket: str, Prefix: str = "") -> None:
        self.Bucket, self.Prefix = Bucket, Prefix


def write_file(path: str, content: bytes) -> None:
    """Write a file, or an object at ``s3://bucket/key``, whole."""
    there, bucket, key = is_s3(path)
    with TSAccessS3(str(bucket), str(key)) if there else TSAccessFile(path, "wb") as file:
        file.write(content)


class S3Handler:
    """Lists, reads and removes objects."""

    @staticmethod
    def list_prefix(lr: ListRequest) -> list[str]:
        """Keys under a prefix; with a delimiter the prefixes below it."""
        arguments = {"Bucket": lr.Bucket, "Prefix": lr.Prefix, "Delimiter": lr.Delimiter, "StartAfter": lr.StartAfter}
        asked = {key: value for key, value in arguments.items() if value}
        pages = list(aws_client("s3").get_paginator("list_objects_v2").paginate(**asked))
        if lr.Delimiter:
            return [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    @classmethod
    def list_prefixes(cls, list_requests: list[ListRequest]) -> list[list[str]]:
        """The same for several."""
        return [cls.list_prefix(request) for request in list_requests]

    @staticmethod
    def get_object(object_request: ReadObjectRequest) -> bytes | None:
        """The bytes, or None where there is no such object."""
        from botocore.exceptions import ClientError

        arguments: dict[str, Any] = {"Bucket": object_request.bucket, "Key": object_request.key}
        if object_request.start is not None:
            last = "" if object_request.length is None else object_request.start + object_request.length - 1
            arguments["Range"] = f"bytes={object_request.start}-{last}"
        try:
            content: bytes = aws_client("s3").get_object(**arguments)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise SMDebugError(str(error)) from None
        return content

    @classmethod
    def get_objects(
        cls, object_requests: list[ReadObjectRequest], use_multiprocessing: bool = True, n_process: int | None = None
    ) -> list[bytes | None]:
        """The same for several; one process does it."""
        return [cls.get_object(request) for request in object_requests]

    @classmethod
    def delete_prefix(cls, path: str | None = None, delete_request: DeleteRequest | None = None) -> None:
        """Remove everything under a prefix, given as ``s3://bucket/prefix`` or as a request."""
        if delete_request is None:
            _, bucket, prefix = is_s3(path or "")
            delete_request = DeleteRequest(bucket or "", prefix or "")
        client = aws_client("s3")
        for key in cls.list_prefix(ListRequest(delete_request.Bucket, delete_request.Prefix)):
            client.delete_object(Bucket=delete_request.Bucket, Key=key)

    @classmethod
    def delete_prefixes(cls, delete_requests: list[DeleteRequest]) -> None:
        """The same for several."""
        for request in delete_requests:
            cls.delete_prefix(delete_request=request)


def list_s3_objects(
    bucket: str, prefix: str, start_after_key: str | None = None, delimiter: str = ""
) -> tuple[list[str], str | None]:
    """Keys under a prefix after one of them, and the last."""
    found = S3Handler.list_prefix(ListRequest(bucket, prefix, delimiter, start_after_key or ""))
    return found, found[-1] if found else start_after_key


def delete_s3_prefixes(bucket: str, keys: str | list[str]) -> None:
    """Remove everything under some prefixes of a bucket."""
    S3Handler.delete_prefixes([DeleteRequest(bucket, key) for key in ([keys] if isinstance(keys, str) else keys)])


def file_exists(file_path: str) -> bool:
    """Whether there is such a file, or object."""
    there, bucket, key = is_s3(file_path)
    if there:
        return key in S3Handler.list_prefix(ListRequest(str(bucket), str(key)))
    return os.path.exists(file_path)


def training_has_ended(trial_prefix: str) -> None:
    """Mark a job as ended."""
    place = os.path.join(trial_prefix, END_OF_JOB_FILENAME)
    there, bucket, key = is_s3(place)
    if there:
        aws_client("s3").put_object(Bucket=bucket, Key=key, Body=b"")
        return
    ensure_dir(place)
    Path(place).touch()


def has_training_ended(trial_prefix: str) -> bool:
    """Whether a job is marked as ended."""
    return file_exists(os.path.join(trial_prefix, END_OF_JOB_FILENAME))


def check_dir_exists(path: str) -> bool:
    """Whether a job that has ended was recorded there; one that goes on may be gone on with."""
    return has_training_ended(path)


def is_rule_signalled_gracetime_passed(trial_prefix: str) -> bool:
    """Whether the service has told rules to end, and the time that it leaves them is over."""
    name = os.environ.get(ENV_RULE_STOP_SIGNAL_FILENAME)
    if not name or not os.path.exists(name):
        return False
    grace = float(os.environ.get(_GRACE_VARIABLE, DEFAULT_GRACETIME_FOR_RULE_STOP_SEC))
    try:
        return time.time() > float(Path(name).read_text()) + grace
    except ValueError:
        return False
