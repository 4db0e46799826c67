"""A sidecar follows what smdebug writes: on a disk, and in an object store over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.remote import local_copy
from stepwatch.probe.store.smdebug.directory import END_FILE
from stepwatch.probe.store.smdebug.exporting import export_smdebug
from stepwatch.rules.catalogue import configure
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.run import Ended, Event, Found
from stepwatch.rules.sidecar.sidecar import Sidecar
from stepwatch.rules.sidecar.stopping import EscalatingStop
from tests.rules.sagemaker_runs import train

RULE = ["sagemaker.VanishingGradient"]
LATE = ["VanishingGradient.threshold=20", "VanishingGradient.start_step=6"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as smdebug writes it, of ten steps."""
    folder = tmp_path_factory.mktemp("smdebug")
    export_smdebug(Trace(train(folder / "run", steps=10)), folder / "theirs")
    return folder / "theirs"


def files(exported: Path, first: int, end: int) -> list[Path]:
    """Files of the steps in [first, end), those of the index last, as smdebug writes them; below the directory."""
    found = [path.relative_to(exported) for path in exported.rglob("*") if path.is_file()]
    steps = [path for path in found if path.parts[0] in ("events", "index")]
    chosen = [path for path in steps if first <= int(path.name.split("_")[0]) < end]
    collections = [path for path in found if path.parts[0] == "collections"] if first == 0 else []
    return [*collections, *sorted(chosen)]


def copy(exported: Path, folder: Path, paths: list[Path]) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(exported / path, folder / path)


def test_on_a_disk(exported: Path, tmp_path: Path) -> None:
    job = tmp_path / "jobs" / "job-3"
    copy(exported, job, files(exported, 0, 5))
    options = [part for setting in LATE for part in ("--set", setting)]
    watching = subprocess.Popen(
        [
            *(sys.executable, "-m", "stepwatch.cli", "watch", str(tmp_path / "jobs"), "--rules", *RULE, *options),
            *("--format", "sagemaker", "--interval", "0.1", "--once", "--stop", "--state", str(tmp_path / "state")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert watching.stdout is not None and watching.stderr is not None

        def status() -> tuple[str, str]:
            assert watching.stdout is not None
            printed = json.loads(watching.stdout.readline())
            (rule,) = printed["DebugRuleEvaluationStatuses"]
            return printed["TrainingJobName"], rule["RuleEvaluationStatus"]

        assert status() == ("job-3", "InProgress")
        copy(exported, job, files(exported, 5, 10))
        assert status() == ("job-3", "IssuesFound")
        (job / END_FILE).touch()
        assert status() == ("job-3", "IssuesFound")
        assert watching.wait(120) == 1
        assert "cannot be stopped from here" in recorded_actions(tmp_path / "state")
    finally:
        watching.kill()
        watching.wait()
    assert not any(path.name in ("findings", "control") for path in job.iterdir())  # nothing is written among theirs


def recorded_actions(state: Path) -> str:
    import pyarrow.dataset as ds

    folders = [path for path in (state / "runs").glob("*/findings") if path.is_dir()]
    return str([ds.dataset(folder, format="parquet").to_table().to_pylist() for folder in folders])


def test_what_was_done_is_not_done_again_by_the_next_watcher(exported: Path, tmp_path: Path) -> None:
    copy(exported, tmp_path / "jobs" / "job", files(exported, 0, 8))
    done: list[str] = []

    class Tell(EscalatingStop):
        name = "tell"

        def apply(self, finding: object, run_dir: Path) -> str:
            done.append(run_dir.name)
            return "told"

    for _ in range(2):
        events = follow(tmp_path / "jobs", tmp_path / "state", 1, Tell())
        assert [event.finding.last_step for event in events if isinstance(event, Found)] == [6]
        from stepwatch.probe.store.smdebug import converted

        converted.converted.cache_clear()  # as in another process
    assert done == ["job"]


def follow(folder: Path, state: Path, findings: int, *actions: EscalatingStop) -> list[Event]:
    """Look at runs until so much was found."""
    policy = Policy("all", tuple(configure(RULE, LATE)), actions)
    sidecar = Sidecar([folder], lambda trace: policy, state)
    events: list[Event] = []
    deadline = time.monotonic() + 120
    try:
        while sum(isinstance(event, Found) for event in events) < findings:
            assert time.monotonic() < deadline, events
            events += sidecar.look()
            time.sleep(0.05)
    finally:
        sidecar.close()
    return events


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The address of moto's S3, and the URL of a prefix there."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield (
        f"http://{host}:{port}",
        f"s3://jobs/of-today?region=us-east-1&scheme=http&endpoint_override={host}:{port}",
    )
    server.stop()


def test_in_an_object_store(
    exported: Path, tmp_path: Path, store: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepwatch.rules.sidecar.sidecar._WALK_SECONDS", 0.0)
    monkeypatch.setattr("stepwatch.rules.sidecar.sidecar._WALK_SHARE", 1e9)
    address, url = store
    s3 = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
    s3.create_bucket(Bucket="jobs")

    def put(job: str, paths: list[Path]) -> None:
        for path in paths:
            s3.upload_file(str(exported / path), "jobs", f"of-today/{job}/{path}")

    put("first", files(exported, 0, 5))
    folder = local_copy(url)
    policy = Policy("all", tuple(configure(RULE, LATE)))
    sidecar = Sidecar([folder], lambda trace: policy, tmp_path / "state")
    events: list[Event] = []
    try:
        events += sidecar.look()
        assert not any(isinstance(event, Found) for event in events)
        put("first", files(exported, 5, 10))
        put("second", files(exported, 0, 10))
        s3.put_object(Bucket="jobs", Key=f"of-today/second/{END_FILE}", Body=b"")
        deadline = time.monotonic() + 120
        while True:
            found = {event.run.name for event in events if isinstance(event, Found)}
            ended = {event.run.name for event in events if isinstance(event, Ended)}
            if found == {"first", "second"} and ended == {"second"}:
                break
            assert time.monotonic() < deadline, events
            events += sidecar.look()
            time.sleep(0.1)
    finally:
        sidecar.close()
