"""Findings are told once, through real servers, however often the process that tells them dies."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepwatch.rules.telling import outbox as outbox_module
from stepwatch.rules.telling.channels import channel
from stepwatch.rules.telling.courier import Courier
from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.notify import NotifyAction
from stepwatch.rules.telling.outbox import Outbox
from stepwatch.rules.telling.webhook import Webhook
from tests.telling.conftest import Server, finding, notice

SECRET = "whsec_" + base64.b64encode(b"a key of some length").decode()


def steps(server: Server) -> list[list[int]]:
    return [[entry["finding"]["last_step"] for entry in body["findings"]] for body in server.bodies]


def test_what_is_found_together_is_one_message_and_nothing_is_told_twice(
    tmp_path: Path, run: Path, server: Server
) -> None:
    box = Outbox(tmp_path / "outbox", Webhook(server.url))
    tell = NotifyAction([box])
    assert tell.apply(finding(3), run) == f"to be told through {box.name}"
    tell.apply(finding(5), run)
    tell.apply(finding(5), run)
    box.deliver(now=True)
    box.close()
    again = Outbox(tmp_path / "outbox", Webhook(server.url))
    NotifyAction([again]).apply(finding(3), run)
    again.deliver(now=True)
    assert [sorted(each) for each in steps(server)] == [[3, 5]]
    assert again.waiting == 0
    assert "s3cr3t" not in "".join(str(path) for path in (tmp_path / "outbox").rglob("*"))


def test_a_message_that_is_not_delivered_survives_a_restart_and_keeps_its_id(
    tmp_path: Path, run: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.statuses = [503]
    box = Outbox(tmp_path / "outbox", Webhook(server.url))
    NotifyAction([box]).apply(finding(3), run)
    box.deliver(now=True)
    box.close()
    assert "not delivered, try 1: answered 503; again in 5 s" in caplog.text and "s3cr3t" not in caplog.text
    box = Outbox(tmp_path / "outbox", Webhook(server.url))
    NotifyAction([box]).apply(finding(4), run)
    box.deliver()
    assert len(server.requests) == 1  # it is not time yet
    box.deliver(now=True)
    assert steps(server) == [[3], [3]]
    assert len({body["id"] for body in server.bodies}) == 1
    box.deliver(now=True)
    assert steps(server)[2:] == [[4]]


def test_a_process_that_dies_after_sending_sends_the_very_same_again_or_nothing(
    tmp_path: Path, run: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies at the first file that it removes, and then at the second."""
    for number, messages in ((1, 2), (2, 1)):
        server.requests.clear()
        box = Outbox(tmp_path / f"outbox-{number}", Webhook(server.url))
        for step in (3, 4, 5):
            NotifyAction([box]).apply(finding(step), run)
        left = [number]
        remove = Path.unlink

        def die(path: Path, missing_ok: bool = False, left: list[int] = left, remove: Any = remove) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            remove(path, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", die)
            with pytest.raises(KeyboardInterrupt):
                box.deliver(now=True)
        box.close()
        again = Outbox(tmp_path / f"outbox-{number}", Webhook(server.url))
        again.deliver(now=True)
        again.deliver(now=True)
        assert len(server.bodies) == messages and server.bodies[0] == server.bodies[-1]
        assert sorted(steps(server)[0]) == [3, 4, 5]


def test_a_message_that_is_refused_is_given_up_loudly(
    tmp_path: Path, run: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.statuses = [403]
    box = Outbox(tmp_path / "outbox", Webhook(server.url))
    NotifyAction([box]).apply(finding(3), run)
    box.deliver(now=True)
    box.deliver(now=True)
    assert len(server.requests) == 1
    assert "1 findings cannot be told: answered 403" in caplog.text


def test_a_fleet_that_breaks_is_few_messages(
    tmp_path: Path, run: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finding every ten seconds for an hour."""
    clock = [1000.0]
    monkeypatch.setattr(outbox_module.time, "monotonic", lambda: clock[0])
    box = Outbox(tmp_path / "outbox", Webhook(server.url))
    one = notice(run)
    for number in range(360):
        box.put(replace(one, id=f"{number:04d}"), gather=0)
        clock[0] += 10
        box.deliver()
    assert len(server.requests) <= 9
    assert len(steps(server)[0]) == 1  # the first is told at once
    assert sum(map(len, steps(server))) + box.waiting == 360


def test_an_error_of_another_rule_does_not_wait_behind_more_of_the_same(
    tmp_path: Path, run: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(outbox_module.time, "monotonic", lambda: clock[0])
    box = Outbox(tmp_path / "outbox", Webhook(server.url))
    for number in range(100):
        box.put(notice(run, number), gather=0)
        clock[0] += 10
        box.deliver()
    told = len(server.requests)
    box.put(notice(run, 200), gather=0)
    clock[0] += 31
    box.deliver()
    assert len(server.requests) == told
    box.put(notice(run, 300, rule="LossDiverged"), gather=0)
    box.deliver()
    assert {200, 300} <= set(steps(server)[-1])


def test_the_end_of_a_finding_is_told_after_the_finding(tmp_path: Path, run: Path, server: Server) -> None:
    courier = Courier(tmp_path / "outbox")
    box = courier.outbox(Webhook(server.url))
    tell = NotifyAction([box])
    tell.apply(finding(3), run)
    tell.resolve(run, lambda notice: "the job was stopped")
    courier.start()
    courier.close()
    assert [(len(body["findings"]), len(body["resolved"])) for body in server.bodies] == [(1, 0), (0, 1)]
    assert box.waiting == 0 and not list(box.holding())


def test_of_several_processes_with_an_outbox_one_delivers(tmp_path: Path, run: Path, server: Server) -> None:
    one, other = (Outbox(tmp_path / "outbox", Webhook(server.url)) for _ in range(2))
    NotifyAction([one]).apply(finding(3), run)
    one.deliver()
    other.deliver(now=True)
    assert server.requests == []
    one.close()
    other.deliver(now=True)
    assert steps(server) == [[3]]


def test_a_process_that_ends_sends_what_waits(tmp_path: Path, run: Path, server: Server) -> None:
    courier = Courier(tmp_path / "outbox")
    courier.start()
    NotifyAction([courier.outbox(Webhook(server.url))]).apply(finding(3), run)
    courier.close()
    assert steps(server) == [[3]]


def test_the_signature_is_that_of_the_standard_webhooks_specification(
    tmp_path: Path, run: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPWATCH_WEBHOOK_SECRET", SECRET)
    channel(server.url).send(Message("msg_1", (notice(run),)))
    ((headers, body),) = server.requests
    signed = b"msg_1." + headers["webhook-timestamp"].encode() + b"." + body
    expected = base64.b64encode(hmac.new(b"a key of some length", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-id"] == "msg_1" and headers["webhook-signature"] == f"v1,{expected}"
    monkeypatch.setenv("STEPWATCH_WEBHOOK_SECRET", "not base64!")
    with pytest.raises(ValueError, match="whsec_BASE64") as error:
        channel(server.url)
    assert "not base64" not in str(error.value)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("nosuchservice://s3cr3t", "not one that apprise knows"),
        ("s3cr3t", "not one that apprise knows"),
        ("http://host:s3cr3t/", r"http\[s\]://HOST"),
        ("sns-sms:0123", r"expected \+NUMBER"),
        ("sns-email:nobody", "expected an e-mail address"),
        ("env:STEPWATCH_NO_SUCH", "no such environment variable"),
        ("file:/no/such/file", "no such file"),
    ],
)
def test_a_channel_that_is_none_is_refused_without_repeating_a_secret(spelling: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        channel(spelling)
    assert "s3cr3t" not in str(error.value)


def test_secrets_are_kept_in_the_environment_or_in_a_file_that_others_cannot_read(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "url"
    path.write_text(f"{server.url}\n")
    path.chmod(0o644)
    with pytest.raises(ValueError, match="others can read it; expected: chmod 600"):
        channel(f"file:{path}")
    path.chmod(0o600)
    monkeypatch.setenv("WHERE", server.url)
    assert channel(f"file:{path}").name == channel("env:WHERE").name == channel(server.url).name
