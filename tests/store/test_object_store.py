"""Runs in an object store: a real S3 protocol over HTTP, spoken by moto's server, which can be taken away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.labels import read_labels
from stepwatch.probe.store.places import find_places
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.remote import Replica, local_copy, replica_folder
from stepwatch.probe.store.smdebug.exporting import export_smdebug
from stepwatch.rules.catalogue import configure
from stepwatch.rules.replay import LiveAnalysis
from stepwatch.rules.testing import SyntheticRun
from stepwatch.rules.trial import create_trial

JOB = """
import sys, time
import torch
from stepwatch.probe import Hook, SaveConfig

url, steps, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.Adam(model.parameters())
hook = Hook(url, model=model, optimizer=optimizer, save_config=SaveConfig(save_interval=1), stop="flag",
            checkpoint=lambda step: "ckpt.pt")
print(hook.out_dir, flush=True)
for step in range(steps):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    print(step, flush=True)
    time.sleep(pause)
    if hook.should_stop:
        break
"""


@dataclass
class Server:
    """moto's S3, in a process of its own: what it holds is lost when it stops, so it is paused instead."""

    port: int
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"s3://jobs/{path}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{self.port}"

    def keys(self, prefix: str) -> list[str]:
        client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1")
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="jobs", Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "moto's server does not answer"
            time.sleep(0.1)
    running = Server(port, process)
    boto3.client("s3", endpoint_url=running.endpoint, region_name="us-east-1").create_bucket(Bucket="jobs")
    yield running
    process.kill()
    process.wait()


@pytest.fixture(scope="module", autouse=True)
def _credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    script = tmp_path / "job.py"
    script.write_text(JOB)

    def start(url: str, steps: int, pause: float = 0.0, cache: str = "cache", **more: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "STEPWATCH_CACHE": str(tmp_path / cache), **more}
        command = [sys.executable, str(script), url, str(steps), str(pause)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture
def reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWATCH_CACHE", str(tmp_path / "reader"))


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


def steps_of(run: Path) -> list[int]:
    return Trace(run).table("steps", columns=["step"])["step"].to_pylist()


def stepwatch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stepwatch.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_run_is_written_to_the_store_and_read_from_there(server: Server, job, reading) -> None:
    url = server.url("whole")
    out, _ = finish(job(url, 40))
    spool = Path(out.splitlines()[0])
    run = local_copy(url)
    assert run != spool
    assert steps_of(run) == list(range(40))
    assert Trace(run).info.job_name == "whole"
    assert Trace(run).end(0) is not None
    in_store = {key.removeprefix("whole/") for key in server.keys("whole/")}
    files = [path for path in spool.rglob("*") if path.is_file() and path.suffix != ".lock"]
    in_spool = {path.relative_to(spool).as_posix() for path in files if not path.name.startswith(".")}
    assert in_store == in_spool, "what was joined with other files is gone in the store as well"
    shown = stepwatch("analyze", "--json", url)
    assert shown.returncode in (0, 1), shown.stderr
    assert json.loads(shown.stdout)["rules"]


def test_a_job_that_goes_on_on_another_machine_continues_the_trace(server: Server, job, reading) -> None:
    url = server.url("moved")
    finish(job(url, 10, cache="first"))
    assert stepwatch("tag", url, "moving").returncode == 0
    assert "moved/notes.json" in server.keys("moved/"), "what is said of a run is in the store"
    finish(job(url, 5, cache="second"))
    run = local_copy(url)
    assert read_labels(run).tags == ("moving",)
    assert len(Trace(run).attempts(0).entries) == 2
    assert steps_of(run) == [0, 1, 2, 3, 4], "the second attempt replaced the first from its first step on"
    assert any("/steps/" in key and "/0000-" in key for key in server.keys("moved/")), "and removed nothing of it"


def test_runs_in_the_store_are_judged_by_a_pattern(server: Server, reading, tmp_path: Path) -> None:
    for name in ("sweep/a/run-1", "sweep/b/run-1", "sweep/b/run-2", "other/run-1"):
        run = SyntheticRun().loss([1.0, 0.5, 0.3]).write(tmp_path / name)
        Replica(server.url(f"fleet/{name}"), run).push(lambda path: True)
    kept = tmp_path / "kept.jsonl"
    url = server.url("fleet/sweep/*/run-*")
    for _ in range(2):
        done = stepwatch("analyze", url, "--results", str(kept), "--json")
        assert done.returncode == 0, done.stderr
        assert [entry["run"] for entry in json.loads(done.stdout)] == [
            server.url(f"fleet/sweep/{name}") for name in ("a/run-1", "b/run-1", "b/run-2")
        ]
        assert len(kept.read_text().splitlines()) == 3, "the second time nothing is judged"
    assert len(find_places([server.url("fleet")])) == 4, "a directory of runs, at any depth"
    refused = stepwatch("analyze", server.url("fleet/none-*"))
    assert refused.returncode == 2 and "matches no run" in refused.stderr and refused.stderr.count("\n") == 1


def test_what_a_killed_job_left_is_uploaded_when_it_starts_again(server: Server, job, reading) -> None:
    url = server.url("killed")
    process = job(url, 10_000, 0.01)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "300":
            break
    process.kill()
    process.wait()
    assert stepwatch_upload(url, job).returncode == 0
    assert steps_of(local_copy(url))[:150] == list(range(150))


def stepwatch_upload(url: str, job: Callable[..., subprocess.Popen[str]]) -> subprocess.CompletedProcess[str]:
    cache = Path(os.environ["STEPWATCH_CACHE"]).parent / "cache"
    command = [sys.executable, "-m", "stepwatch.cli", "upload", url]
    environment = {**os.environ, "STEPWATCH_CACHE": str(cache)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_nothing_is_lost_while_the_store_is_away(server: Server, job, reading) -> None:
    url = server.url("away")
    process = job(url, 450, 0.01)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "50":
            server.process.send_signal(signal.SIGSTOP)
        if line.strip() == "350":
            server.process.send_signal(signal.SIGCONT)
            break
    finish(process)
    assert steps_of(local_copy(url)) == list(range(450))


def test_a_store_that_is_never_there_costs_the_job_nothing_but_a_line(server: Server, job, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    url = f"s3://jobs/never?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{port}"
    process = job(url, 20, STEPWATCH_UPLOAD_SECONDS="1")
    out, err = finish(process)
    spool = Path(out.splitlines()[0])
    assert steps_of(spool) == list(range(20))
    assert "cannot be reached" in err
    assert str(spool) in err
    assert any("cannot be reached" in note for note in Trace(spool).notes)


def test_a_live_run_is_judged_and_stopped_through_the_store(server: Server, job, reading) -> None:
    url = server.url("live")
    process = job(url, 10_000, 0.02)
    deadline = time.monotonic() + 60
    while not any(key.startswith("live/steps/") for key in server.keys("live/")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    trace = Trace(local_copy(url))
    live = LiveAnalysis(trace, configure(None))
    live.poll()
    before = live.steps
    while live.steps < before + 1:
        assert time.monotonic() < deadline
        live.poll()
        time.sleep(0.2)
    stopped = stepwatch("stop", url, "--wait", "40")
    assert stopped.returncode == 0, stopped.stderr
    assert "ckpt.pt" in stopped.stdout
    out, _ = finish(process)
    assert int(out.split()[-1]) < 9_999


def test_what_is_not_there_is_said_in_one_line(server: Server, reading) -> None:
    missing = stepwatch("show", server.url("nothing-here"))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert len(missing.stderr.splitlines()) == 1
    assert "nothing is there" in missing.stderr
    with pytest.raises(TraceError, match="unknown-scheme://x"):
        Replica("unknown-scheme://x", replica_folder("unknown-scheme://x", "spool"))


def test_names_in_a_store_cannot_lead_out_of_the_copy(server: Server, reading, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
    client.put_object(Bucket="jobs", Key="evil/../../../escaped.json", Body=b"{}")
    client.put_object(Bucket="jobs", Key="evil/run.json", Body=b"{}")
    run = local_copy(server.url("evil"))
    assert (run / "run.json").exists()
    assert not list(tmp_path.rglob("escaped.json"))


def test_a_directory_of_smdebug_is_read_and_followed(server: Server, job, reading, tmp_path: Path) -> None:
    finish(job(str(tmp_path / "run"), 6))
    theirs = tmp_path / "theirs"
    export_smdebug(Trace(tmp_path / "run"), theirs)
    client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
    late = [theirs / "index" / "000000000" / "000000000005_worker_0.json", theirs / "training_job_end.ts"]
    for path in sorted(theirs.rglob("*.*")):
        if path.is_file() and path not in late:
            client.upload_file(str(path), "jobs", f"theirs/{path.relative_to(theirs)}")
    trial = create_trial(server.url("theirs"))
    assert (trial.name, trial.steps()) == ("theirs", [0, 1, 2, 3, 4])
    for path in late:
        client.upload_file(str(path), "jobs", f"theirs/{path.relative_to(theirs)}")
    trial.wait_for_steps([5])
    assert trial.tensor("learning_rate").value(5).shape == (1,)
    deadline = time.monotonic() + 30
    while not trial.loaded_all_steps:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert create_trial(server.url("theirs")).steps() == create_trial(theirs).steps()
