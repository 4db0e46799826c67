"""Who is writing: the process, so that it can be found, or be known to be gone."""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def process_identity() -> dict[str, Any]:
    """Host, boot, pid, start time (seconds since the epoch), executable, user and scheduler of this process."""
    process = psutil.Process()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": process.pid,
        "process_start_time": process.create_time(),
        "executable": sys.executable,
        "user": user,
        "scheduler": _scheduler(os.environ),
    }


def _scheduler(environment: Mapping[str, str]) -> dict[str, str]:
    """Schedulers that started this process, and its job there.

    Kubernetes tells a container nothing of its job; a manifest does so by KUBERNETES_JOB=NAMESPACE/NAME.
    """
    named = {"slurm": "SLURM_JOB_ID", "sagemaker": "TRAINING_JOB_NAME", "kubernetes": "KUBERNETES_JOB"}
    jobs = {scheduler: environment[name] for scheduler, name in named.items() if environment.get(name)}
    try:
        ray = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))["metadata"]["job_submission_id"]
        return {**jobs, "ray": str(ray)}
    except (ValueError, KeyError, TypeError):
        return jobs


def boot_id() -> str:
    """Changes with every boot of the machine; "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_alive(identity: dict[str, Any]) -> bool | None:
    """Whether that very process runs: False when it is gone, None when it is on another machine."""
    if identity.get("host") != socket.gethostname():
        return None
    if identity.get("boot_id", "") != boot_id():
        return False
    try:
        process = psutil.Process(int(identity["pid"]))
        same = abs(process.create_time() - float(identity["process_start_time"])) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError):
        return False
