"""Of sidecars on several machines one acts on a run in an object store; the store is moto's, over HTTP."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from stepwatch.probe.store.remote import Replica, local_copy
from stepwatch.rules.sidecar import store_lease
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.sidecar import Sidecar
from stepwatch.rules.sidecar.store_lease import StoreLease
from tests.sidecar.conftest import SPECS, Job, Telling


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    boto3.client("s3", endpoint_url=endpoint(server), region_name="us-east-1").create_bucket(Bucket="leases")
    yield server
    server.stop()


def endpoint(server: ThreadedMotoServer) -> str:
    return "http://{}:{}".format(*server.get_host_and_port())


def url(server: ThreadedMotoServer, path: str) -> str:
    host, port = server.get_host_and_port()
    return f"s3://leases/{path}?region=us-east-1&scheme=http&endpoint_override={host}:{port}"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(store_lease, "_now", clock)
    return clock


@pytest.fixture
def machines(store: ThreadedMotoServer, clock: Clock, tmp_path: Path) -> tuple[StoreLease, StoreLease]:
    """The leases of two machines, which share no file system."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    run = url(store, tmp_path.name)
    return StoreLease(tmp_path / "one" / "control", run), StoreLease(tmp_path / "other" / "control", run)


def test_one_has_it_until_it_lets_go(machines: tuple[StoreLease, StoreLease], clock: Clock) -> None:
    one, other = machines
    assert one.acquire() and not other.acquire()
    assert other.holder().startswith(f"process {os.getpid()} of ") and not other.held
    for _ in range(20):  # as long as it is renewed
        clock.now += 11
        assert one.acquire() and not other.acquire()
    one.release()
    clock.now += 11
    assert other.acquire() and not one.acquire()


def test_it_goes_to_another_when_its_holder_is_silent_who_then_knows_that_it_has_lost_it(
    machines: tuple[StoreLease, StoreLease], clock: Clock
) -> None:
    one, other = machines
    assert one.acquire() and not other.acquire()
    clock.now += 59
    assert not other.acquire()
    clock.now += 11
    assert other.acquire()
    assert not one.acquire() and not one.held
    clock.now += 11
    assert other.acquire() and not one.acquire()


def test_who_cannot_reach_the_store_acts_until_another_may_have_taken_over(
    machines: tuple[StoreLease, StoreLease],
    clock: Clock,
    store: ThreadedMotoServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, other = machines
    assert one.acquire()
    store.stop()
    clock.now += 30
    assert one.acquire() and not other.acquire()
    clock.now += 31
    assert not one.acquire()
    said = [record.getMessage() for record in caplog.records if record.name == "stepwatch"]
    assert len(said) == 2 and all("nothing is done without the lease" in each for each in said)  # each machine, once


def test_it_is_ours_although_we_did_not_hear_that_we_took_it(
    machines: tuple[StoreLease, StoreLease], clock: Clock
) -> None:
    one, other = machines
    assert one.acquire()
    one._put({"holder": "me", "token": one._token, "beat": 99}, IfMatch=one._there or "")
    clock.now += 11
    assert one.acquire() and not other.acquire()


def test_of_two_sidecars_on_two_machines_one_tells(
    store: ThreadedMotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "stepwatch")
    monkeypatch.setattr("stepwatch.probe.store.reader._REFRESH_SECONDS", 0.0)
    job = Job(tmp_path / "job")
    upload = Replica(url(store, "runs/a"), tmp_path / "job")

    def pushed() -> None:
        upload.push(lambda path: True)

    job.train(1)
    pushed()
    policy_of = [Telling(), Telling()]
    sidecars = []
    for number, tell in enumerate(policy_of):
        monkeypatch.setenv("STEPWATCH_CACHE", str(tmp_path / f"cache-{number}"))
        policy = Policy("all", tuple(SPECS), (tell,))
        folder = local_copy(url(store, "runs"))
        sidecars.append(Sidecar([folder], lambda trace, policy=policy: policy, tmp_path / f"state-{number}"))
        list(sidecars[-1].look())
    job.train(200)
    pushed()
    said = [event for sidecar in sidecars for event in sidecar.look()]
    for sidecar in sidecars:
        sidecar.close()
    job.end()
    assert [len(tell.told) for tell in policy_of] == [1, 0], said
