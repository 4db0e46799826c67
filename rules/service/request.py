"""Configurations that SageMaker's service keeps: training jobs by name, files of custom rules in S3."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwatch.rules.errors import RuleError
from stepwatch.rules.telling.aws import aws_client

SCHEME = "sagemaker://"
"""``sagemaker://JOB`` is the training job of that name, as DescribeTrainingJob has it."""

RULE_LISTS = ("DebugRuleConfigurations", "ProfilerRuleConfigurations")

_JOB_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")


def read_request(place: str) -> Mapping[str, Any]:
    """A CreateTrainingJob request, or an answer of DescribeTrainingJob: from a JSON file, or of ``sagemaker://JOB``.

    Raises:
        RuleError: it cannot be read, or there is no such job.
    """
    if place.startswith(SCHEME):
        return describe_training_job(place.removeprefix(SCHEME))
    try:
        content = json.loads(Path(place).read_bytes())
    except FileNotFoundError:
        raise RuleError(f"{place}: no such file; expected a request in JSON, or {SCHEME}JOB") from None
    except OSError as error:
        raise RuleError(f"{place}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RuleError(f"{place}: is not JSON: {error}") from None
    if not isinstance(content, Mapping):
        raise RuleError(f"{place}: holds a {type(content).__name__}; expected an object")
    return content


@functools.cache
def describe_training_job(name: str) -> Mapping[str, Any]:
    """What the service knows of a training job; asked once in a process.

    Raises:
        RuleError: there is none, or the service does not answer.
    """
    if not _JOB_NAME.fullmatch(name):
        raise RuleError(f"{SCHEME}{name}: not the name of a training job; expected letters, digits and hyphens")
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer: Mapping[str, Any] = _client("sagemaker").describe_training_job(TrainingJobName=name)
    except (BotoCoreError, ClientError) as error:
        raise RuleError(f"{SCHEME}{name}: {error}") from None
    return answer


@functools.cache
def rule_file(url: str) -> Path:
    """A local copy of a Python file with rules in S3; kept as long as the process.

    Raises:
        RuleError: there is none, or the service does not answer.
    """
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not key.endswith(".py"):
        raise RuleError(f"{url} is not a Python file; expected s3://BUCKET/PATH.py")
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        content = _client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    except (BotoCoreError, ClientError) as error:
        raise RuleError(f"{url}: {error}") from None
    path = Path(_folder().name) / Path(key).name
    path.write_bytes(content)
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="stepwatch-rules-")


def _client(service: str) -> Any:
    try:
        return aws_client(service)
    except ImportError as error:
        raise RuleError(str(error)) from None
