"""A job is ended through its scheduler; stand-ins take the places of Slurm, Kubernetes, Ray and SageMaker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.sidecar import stopping
from stepwatch.rules.sidecar.schedulers import SchedulerError, cancel, scheduled_as, stop_training_job
from stepwatch.rules.sidecar.stopping import EscalatingStop
from tests.sidecar.conftest import Job
from tests.sidecar.test_stopping import FINDING, SILENT

RAY = json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}})


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins that write down how they were called, and end the process whose number is in ``victim``."""
    for tool in ("scancel", "kubectl", "ray"):
        path = tmp_path / "bin" / tool
        path.parent.mkdir(exist_ok=True)
        script = (
            f'echo "{tool} $*" >> {tmp_path}/called\n[ ! -e {tmp_path}/victim ] || kill -9 $(cat {tmp_path}/victim)\n'
        )
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "scheduled", "called"),
    [
        ({"SLURM_JOB_ID": "17"}, {"slurm": "17"}, "scancel 17\n"),
        (
            {"KUBERNETES_JOB": "team/train"},
            {"kubernetes": "team/train"},
            'kubectl --namespace team patch job train --type=merge --patch={"spec": {"suspend": true}}\n',
        ),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": RAY}, {"ray": "raysubmit_1"}, "ray job stop --no-wait raysubmit_1\n"),
    ],
)
def test_the_job_says_what_started_it_and_that_is_asked(
    tools: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], scheduled: dict[str, str], called: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    job = Job(tools / "run").train(1)
    assert scheduled_as(Trace(tools / "run")) == scheduled
    cancel(Trace(tools / "run"))
    assert (tools / "called").read_text() == called
    job.end()


def test_a_job_that_does_not_answer_is_cancelled_before_it_is_signalled(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SILENT, str(tools / "run"), "deaf"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert job.stdout is not None and job.stdout.readline() == "ready\n"
        (tools / "victim").write_text(str(job.pid))
        done = EscalatingStop(answer=0.1, grace=20, scheduler=True).apply(FINDING, tools / "run")
        assert done == "no answer in 0.1 s; Slurm job 17 is cancelled"
        assert job.wait() == -signal.SIGKILL
    finally:
        job.kill()
        job.wait()


def test_what_the_scheduler_says_against_it_is_said(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tools / "plain").train(1)
    with pytest.raises(SchedulerError, match="does not say which scheduler"):
        cancel(Trace(tools / "plain"))
    job.end()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    job = Job(tools / "run").train(1)
    (tools / "bin" / "scancel").write_text("#!/bin/sh\necho Access denied >&2\nexit 1\n")
    with pytest.raises(SchedulerError, match="scancel ended with status 1: Access denied"):
        cancel(Trace(tools / "run"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SchedulerError, match="scancel is not installed here"):
        cancel(Trace(tools / "run"))
    job.end()


class SageMaker(ThreadingHTTPServer):
    """Answers ListTrainingJobs in pages of one, and StopTrainingJob."""

    def __init__(self, jobs: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs = jobs
        self.stopped: list[str] = []
        self.refusals = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: SageMaker

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer: dict[str, Any] = {}
        status = 200
        if self.server.refusals:
            self.server.refusals -= 1
            status, answer = 400, {"__type": "AccessDeniedException", "message": "not authorized"}
        elif self.headers["X-Amz-Target"] == "SageMaker.StopTrainingJob":
            self.server.stopped.append(asked["TrainingJobName"])
        else:
            assert asked["StatusEquals"] == "InProgress"
            found = [job for job in self.server.jobs if asked["NameContains"] in job]
            at = int(asked.get("NextToken", "0"))
            arn = "arn:aws:sagemaker:us-east-1:1:training-job/x"
            answer["TrainingJobSummaries"] = [
                {"TrainingJobName": job, "TrainingJobArn": arn, "CreationTime": 0, "TrainingJobStatus": "InProgress"}
                for job in found[at : at + 1]
            ]
            if at + 1 < len(found):
                answer["NextToken"] = str(at + 1)
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def sagemaker(monkeypatch: pytest.MonkeyPatch) -> Iterator[SageMaker]:
    server = SageMaker(["my-train-1", "train", "train-2", "other-7"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    yield server
    server.shutdown()
    server.server_close()


def test_a_sagemaker_job_is_stopped_by_its_name_or_by_a_prefix_that_only_it_has(sagemaker: SageMaker) -> None:
    assert stop_training_job("train") == "SageMaker training job train is stopping"
    stop_training_job("other")
    for name, message in (("tra", "2 running jobs have names that begin so; none is stopped"), ("none", "not running")):
        with pytest.raises(SchedulerError, match=message):
            stop_training_job(name)
    assert sagemaker.stopped == ["train", "other-7"]


def test_a_stop_that_the_service_refuses_is_shouted_about_and_tried_again(
    sagemaker: SageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "_PAUSES", (0.01,))
    shouted: list[str] = []
    stop = EscalatingStop(shout=lambda run, text: shouted.append(text))
    sagemaker.refusals = 2
    assert stop.insist(tmp_path, partial(stop_training_job, "train")) == "SageMaker training job train is stopping"
    assert len(shouted) == 2 and all("not authorized" in text and "again in 0.01 s" in text for text in shouted)
    assert stop.insist(tmp_path, partial(stop_training_job, "none")).endswith("none: not running")
    with pytest.raises(SchedulerError, match="none is stopped"):
        stop.insist(tmp_path, partial(stop_training_job, "tra"))
    assert len(shouted) == 3 and "trying again" not in shouted[2]
    assert sagemaker.stopped == ["train"]
