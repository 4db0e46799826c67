"""Ends a job through the scheduler that runs it: Slurm, Kubernetes, Ray, SageMaker."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.telling.aws import aws_client

_SECONDS = 60.0


class SchedulerError(Exception):
    """The job has no scheduler that is known, or that one did not end it.

    Attributes:
        final: whether trying again is pointless.
    """

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class NotRunning(SchedulerError):
    """There is nothing to end."""


def cancel(trace: Trace) -> str:
    """End the job that the latest attempt of the run is part of, and return what was done.

    Slurm's job is cancelled, Kubernetes' suspended (its pods end, and it stays to be looked at), Ray's and SageMaker's
    stopped; by ``scancel``, ``kubectl`` and ``ray``, with the rights of whoever runs this, and by boto3.

    Raises:
        SchedulerError: the run names no scheduler, or the scheduler did not take it.
    """
    named = scheduled_as(trace)
    if not named:
        raise SchedulerError("the run does not say which scheduler runs it")
    return "; ".join(_CANCEL[scheduler](job) for scheduler, job in sorted(named.items()))


def scheduled_as(trace: Trace) -> dict[str, str]:
    """Schedulers that the latest attempt was started by, with its job there."""
    found: dict[str, str] = {}
    for rank in trace.ranks:
        for entry in trace.attempts(rank).entries[-1:]:
            scheduler = entry.get("scheduler")
            known = scheduler.items() if isinstance(scheduler, dict) else ()
            found.update({name: str(job) for name, job in known if name in _CANCEL})
    return found


def stop_training_job(name: str) -> str:
    """Stop the SageMaker training job of that name, or the only running one whose name begins with it.

    Raises:
        SchedulerError: there is none, or more than one; then none is stopped.
        ImportError: boto3 is not installed.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    client = aws_client("sagemaker")
    try:
        pages = client.get_paginator("list_training_jobs").paginate(NameContains=name, StatusEquals="InProgress")
        running = [job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]]
        matching = [name] if name in running else [job for job in running if job.startswith(name)]
        if not matching:
            raise NotRunning(f"SageMaker training job {name}: not running", final=True)
        if len(matching) > 1:
            what = f"{len(matching)} running jobs have names that begin so; none is stopped"
            raise SchedulerError(f"SageMaker training job {name}: {what}", final=True)
        client.stop_training_job(TrainingJobName=matching[0])
    except (BotoCoreError, ClientError) as error:
        raise SchedulerError(f"SageMaker training job {name}: {error}") from None
    return f"SageMaker training job {matching[0]} is stopping"


def _slurm(job: str) -> str:
    _run("scancel", job)
    return f"Slurm job {job} is cancelled"


def _kubernetes(job: str) -> str:
    namespace, _, name = job.rpartition("/")
    patch = json.dumps({"spec": {"suspend": True}})
    _run("kubectl", "--namespace", namespace or "default", "patch", "job", name, "--type=merge", f"--patch={patch}")
    return f"Kubernetes job {job} is suspended"


def _ray(job: str) -> str:
    _run("ray", "job", "stop", "--no-wait", job)
    return f"Ray job {job} is stopping"


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise SchedulerError(f"{command[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{command[0]} did not answer in {_SECONDS:g} s") from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise SchedulerError(f"{command[0]} ended with status {done.returncode}: {said[:500]}")


_CANCEL: dict[str, Callable[[str], str]] = {
    "kubernetes": _kubernetes,
    "ray": _ray,
    "sagemaker": stop_training_job,
    "slurm": _slurm,
}
