"""Findings are told once, through real servers, however often the process that tells them dies."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stepwatch.probe.store.records import StepRecord
from stepwatch.probe.store.writer import TraceWriter
from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.telling import outbox as outbox_module
from stepwatch.rules.telling.channels import channel
from stepwatch.rules.telling.message import Message, item
from stepwatch.rules.telling.notify import NotifyAction
from stepwatch.rules.telling.outbox import Courier, Outbox
from stepwatch.rules.telling.webhook import Webhook

SECRET = "whsec_" + base64.b64encode(b"a key of some length").decode()


class Server(ThreadingHTTPServer):
    """Answers with the statuses given, then with 200."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = list(statuses)
        self.requests: list[tuple[dict[str, str], bytes]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/s3cr3t"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(({key.lower(): value for key, value in self.headers.items()}, body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.shutdown()
    one.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    writer = TraceWriter(tmp_path / "run", run_info={"job_name": "digits"})
    writer.submit(StepRecord(0, "TRAIN", 0, 1))
    writer.close("finished")
    return tmp_path / "run"


def finding(step: int = 3, rank: int = 0, rule: str = "ExplodingTensor") -> Finding:
    return Finding(
        rule, Severity.ERROR, step, step, ("weight",), float("inf"), 0.0, "it blew up", "lower the rate", rank=rank
    )


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
    """A finding every five seconds for an hour."""
    clock = [1000.0]
    monkeypatch.setattr(outbox_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(outbox_module, "_SETTLE_SECONDS", 0.0)
    box = Outbox(tmp_path / "outbox", Webhook(server.url))
    about = item(run, finding())
    for number in range(720):
        box.put(f"key-{number:04d}", about)
        clock[0] += 5
        box.deliver()
    assert len(server.requests) <= 9
    assert len(steps(server)[0]) == 1  # the first is told at once
    assert sum(map(len, steps(server))) + box.waiting == 720


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
    channel(server.url).send(Message("msg_1", (item(run, finding()),)))
    ((headers, body),) = server.requests
    signed = b"msg_1." + headers["webhook-timestamp"].encode() + b"." + body
    expected = base64.b64encode(hmac.new(b"a key of some length", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-id"] == "msg_1" and headers["webhook-signature"] == f"v1,{expected}"
    monkeypatch.setenv("STEPWATCH_WEBHOOK_SECRET", "not base64!")
    with pytest.raises(ValueError, match="whsec_BASE64") as error:
        channel(server.url)
    assert "not base64" not in str(error.value)


def test_apprise_gets_title_and_text(run: Path, server: Server) -> None:
    findings = [finding(7, rank) for rank in range(3)] + [finding(9, rule="Overfit")]
    one = channel(f"json://127.0.0.1:{server.server_port}/s3cr3t")
    one.send(Message("1", tuple(item(run, each) for each in findings[:3])))
    one.send(Message("2", tuple(item(run, each) for each in findings)))
    first, second = server.bodies
    assert first["title"] == "digits: ExplodingTensor at step 7"
    assert first["message"] == (
        f"digits ({run}), ranks 0, 1, 2\nERROR ExplodingTensor at step 7: it blew up\nTry: lower the rate"
    )
    assert second["title"] == "digits: 4 findings, 4 of them errors"
    assert "Overfit at step 9" in second["message"]
    assert one.name.startswith("json-") and "s3cr3t" not in one.name


def test_apprise_that_cannot_deliver_is_tried_again(tmp_path: Path, run: Path, server: Server) -> None:
    server.statuses = [500]
    box = Outbox(tmp_path / "outbox", channel(f"json://127.0.0.1:{server.server_port}/"))
    NotifyAction([box]).apply(finding(3), run)
    box.deliver(now=True)
    assert box.waiting == 1
    box.deliver(now=True)
    assert box.waiting == 0


def test_sns_has_the_form_of_sagemaker_debugger(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.server import ThreadedMotoServer
    from moto.sns import sns_backends

    aws = ThreadedMotoServer(port=0, verbose=False)
    aws.start()
    host, port = aws.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "eu-west-1"),
    ):
        monkeypatch.setenv(name, value)
    try:
        for spelling in ("sns-email:someone.else+x@mail.example.org", "sns-sms:+15551234567"):
            one = channel(spelling)
            one.send(Message("1", (item(run, finding()),)))
            one.send(Message("2", (item(run, finding(4)),)))
        backend = sns_backends[DEFAULT_ACCOUNT_ID]["eu-west-1"]
        (topic,) = backend.topics.values()
        assert topic.name == "SMDebugRules"
        subscriptions = [(each.protocol, each.endpoint, each._filter_policy) for each in backend.subscriptions.values()]
        assert subscriptions == [
            ("email", "someone.else+x@mail.example.org", {"email": ["someone.else+x@mail.example.org"]}),
            ("sms", "+15551234567", {"phone_num": ["+15551234567"]}),
        ]
        sent = [entry for entry in topic.sent_notifications]
        assert len(sent) == 4
        _, text, subject, attributes, *_ = sent[0]
        assert subject == "SMDebugRule:ExplodingTensor fired"
        assert text.startswith("SMDebugRule:ExplodingTensor fired. digits (")
        assert attributes["email"]["Value"] == "someone.else+x@mail.example.org"
    finally:
        aws.stop()


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
