"""Who was told of a finding is told once that it no longer holds. Jobs and the receiver are real."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.sidecar.hangs import RULE as HANG
from stepwatch.rules.sidecar.policy import Policy
from stepwatch.rules.sidecar.resolving import Resolutions
from stepwatch.rules.sidecar.sidecar import Sidecar
from stepwatch.rules.telling.notify import NotifyAction
from stepwatch.rules.telling.outbox import Outbox
from stepwatch.rules.telling.webhook import Webhook
from tests.sidecar.conftest import SPECS, Job
from tests.telling.conftest import Server, server

Begin = Callable[..., Job]

__all__ = ["server"]


class Watch:
    """A sidecar that tells a server, as if started anew."""

    def __init__(self, tmp_path: Path, url: str) -> None:
        self.box = Outbox(tmp_path / "outbox", Webhook(url))
        policy = Policy("all", tuple(SPECS), (NotifyAction([self.box]),))
        self._sidecar = Sidecar([tmp_path / "runs"], lambda trace: policy, tmp_path / "state")

    def until(self, server: Server, messages: int) -> None:
        """Look until so many messages have come."""
        while len(server.bodies) < messages:
            for _ in self._sidecar.look():
                pass
            self.box.deliver(now=True)
            time.sleep(0.02)

    def close(self, *, when_ended: bool = False) -> None:
        list(self._sidecar.look())
        while when_ended and not self._sidecar.all_ended():
            list(self._sidecar.look())
            time.sleep(0.05)
        self._sidecar.close()
        self.box.close()


def told(server: Server) -> list[tuple[list[int], list[tuple[int, str]]]]:
    return [
        (
            [each["finding"]["last_step"] for each in body["findings"]],
            [(each["finding"]["last_step"], each["how"]) for each in body["resolved"]],
        )
        for body in server.bodies
    ]


def test_the_end_of_a_job_resolves_what_was_found_in_it_once(tmp_path: Path, begin: Begin, server: Server) -> None:
    job = begin(tmp_path / "runs" / "a").train(1, 200)
    watch = Watch(tmp_path, server.url)
    watch.until(server, 1)
    watch.close()
    job.end("stopped")
    for _ in range(2):  # the second finds nothing left to tell
        watch = Watch(tmp_path, server.url)
        watch.until(server, 2)
        watch.close()
        watch.box.deliver(now=True)
    assert told(server) == [([1], []), ([], [(1, "the job was stopped")])]
    assert server.bodies[0]["findings"][0]["id"] == server.bodies[1]["resolved"][0]["id"]


def test_a_watcher_that_ends_with_the_job_tells_that_it_is_over(tmp_path: Path, begin: Begin, server: Server) -> None:
    job = begin(tmp_path / "runs" / "a").train(1, 200)
    watch = Watch(tmp_path, server.url)
    watch.until(server, 1)
    job.end()
    watch.close(when_ended=True)
    watch.box.deliver(now=True)
    assert told(server) == [([1], []), ([], [(1, "the job has finished")])]


def test_a_job_that_is_started_again_before_it_went_wrong_has_recovered(
    tmp_path: Path, begin: Begin, server: Server
) -> None:
    path = tmp_path / "runs" / "a"
    job = begin(path).train(1, 200, 1, 1, 300)
    watch = Watch(tmp_path, server.url)
    watch.until(server, 1)
    watch.close()  # it does not see that the job ends
    job.end("failed")
    begin(path, start_step=3).train(1, 1)
    watch = Watch(tmp_path, server.url)
    while not any(body["resolved"] for body in server.bodies):
        watch.until(server, len(server.bodies) + 1)
    watch.close()
    assert sorted(step for found, _ in told(server) for step in found) == [1, 4]
    assert [end for _, resolved in told(server) for end in resolved] == [(4, "the job was started again from step 3")]


def test_a_rank_that_moves_again_no_longer_hangs(tmp_path: Path, begin: Begin, server: Server) -> None:
    job = begin(tmp_path / "a").train(1, 1, 1)
    box = Outbox(tmp_path / "outbox", Webhook(server.url))
    tell = NotifyAction([box])
    watch = Resolutions(Trace(job.path), [tell], job.path)
    hang = Finding(HANG, Severity.ERROR, 3, 3, (), 40.0, 30.0, "rank 0 has stood still", "look at its stack")
    other = Finding("Spike", Severity.ERROR, 2, 2, (), 200.0, 100.0, "too high", "nothing")
    for finding in (hang, other):
        tell.apply(finding, job.path)
    watch.see([hang, other])
    for step, messages in ((3, 1), (4, 2)):
        beat = job.path / "control" / "beat-rank=00000.json"
        beat.parent.mkdir(exist_ok=True)
        beat.write_text(json.dumps({"step": step}))
        watch.look()
        box.deliver(now=True)
        assert len(server.bodies) == messages
    assert told(server)[1] == ([], [(3, "rank 0 moves again: it has come to step 4")])


def test_a_channel_may_be_left_out_of_it(tmp_path: Path, begin: Begin, server: Server) -> None:
    job = begin(tmp_path / "a").train(200)
    box = Outbox(tmp_path / "outbox", Webhook(server.url))
    tell = NotifyAction([box], resolved=False)
    tell.apply(Finding("Spike", Severity.ERROR, 0, 0, (), 200.0, 100.0, "too high", "nothing"), job.path)
    tell.resolve(job.path, lambda notice: "it is over")
    box.deliver(now=True)
    assert [len(body["resolved"]) for body in server.bodies] == [0]
