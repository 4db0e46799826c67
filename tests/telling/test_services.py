"""Services are told through real servers: apprise's, mail, incidents, SNS."""

from __future__ import annotations

import socket
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MessageHandler
from aiosmtpd.smtp import AuthResult
from apprise.plugins import pagerduty

from stepwatch.rules.finding import Severity
from stepwatch.rules.telling.channels import channel
from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.notify import NotifyAction
from stepwatch.rules.telling.outbox import Outbox
from tests.telling.conftest import Server, finding, free_port, make_run, notice


def test_apprise_gets_title_and_text(run: Path, server: Server) -> None:
    found = [notice(run, 7, rank) for rank in range(3)] + [notice(run, 9, rule="Overfit")]
    one = channel(f"json://127.0.0.1:{server.server_port}/s3cr3t")
    one.send(Message("1", tuple(found[:3])))
    one.send(Message("2", tuple(found)))
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
            one.send(Message("1", (notice(run),)))
            one.send(Message("2", (notice(run, 4),)))
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


def test_a_fleet_that_breaks_is_one_paragraph(tmp_path: Path, server: Server) -> None:
    runs = [make_run(tmp_path / f"job-{number:02d}") for number in range(37)]
    found = tuple(notice(each, 7) for each in runs)
    one = channel(f"json://127.0.0.1:{server.server_port}/")
    one.send(Message("1", (*found, notice(runs[0], 9, rule="Overfit"))))
    one.send(Message("2", resolved=tuple(each.ended("the job was stopped", each.time) for each in found)))
    told, resolved = server.bodies
    assert (told["title"], told["type"]) == ("37 runs: 38 findings, 38 of them errors", "failure")
    first, second = told["message"].split("\n\n")
    assert first.startswith("37 runs: job-00 (step 7), job-01 (step 7), ") and "job-09 (step 7) and 27 more\n" in first
    assert f"ERROR ExplodingTensor at step 7, in {runs[0]}: it blew up" in first
    assert second.startswith(f"job-00 ({runs[0]})\nERROR Overfit at step 9")
    assert (resolved["title"], resolved["type"]) == ("resolved: 37 runs: ExplodingTensor", "success")
    assert resolved["message"].endswith(f"RESOLVED ExplodingTensor at step 7, in {runs[0]}: the job was stopped")


def test_mail_arrives_by_smtp(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "localhost")  # which may be looked for in vain, for seconds
    received: list[tuple[str, list[str], EmailMessage]] = []

    class Keep(MessageHandler):
        def prepare_message(self, session: Any, envelope: Any) -> Any:
            message = message_from_bytes(envelope.content, policy=policy.default)
            received.append((envelope.mail_from, envelope.rcpt_tos, message))
            return message

        def handle_message(self, message: Any) -> None:
            pass

    accounts: list[tuple[bytes, bytes]] = []

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        accounts.append((data.login, data.password))
        return AuthResult(success=True)

    port = free_port()
    mail = Controller(
        Keep(), hostname="127.0.0.1", port=port, authenticator=authenticate, auth_require_tls=False, auth_required=True
    )
    mail.start()
    try:
        url = f"mailto://watch:s3cr3t@127.0.0.1:{port}?from=watch@example.org&to=someone@example.org&format=text"
        box = Outbox(tmp_path / "outbox", channel(url))
        tell = NotifyAction([box])
        tell.apply(finding(7), run)
        box.deliver(now=True)
        tell.resolve(run, lambda notice: "the job was stopped")
        box.deliver(now=True)
    finally:
        mail.stop()
    assert accounts[0] == (b"watch", b"s3cr3t")
    (sender, to, first), (*_, second) = received
    assert (sender, to) == ("watch@example.org", ["someone@example.org"])
    assert first["Subject"] == "digits: ExplodingTensor at step 7"
    text = first.get_body(("plain",))
    assert text is not None and "ERROR ExplodingTensor at step 7: it blew up" in text.get_content()
    assert second["Subject"] == "resolved: digits: ExplodingTensor at step 7"
    assert "s3cr3t" not in "".join(str(path) for path in tmp_path.rglob("*"))


def test_an_incident_at_pagerduty_is_one_for_a_message_and_a_rule_and_is_closed_with_the_last_run(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pagerduty.PAGERDUTY_API_LOOKUP, pagerduty.PagerDutyRegion.US, server.url)
    box = Outbox(tmp_path / "outbox", channel("pagerduty://integration@key"))
    tell = NotifyAction([box])
    runs = [make_run(tmp_path / f"job-{number}") for number in range(2)]
    for run in runs:
        tell.apply(finding(7), run)
        tell.apply(finding(9, rule="Overfit", severity=Severity.WARNING), run)
    box.deliver(now=True)
    tell.apply(finding(20), runs[1])  # later, so another incident
    box.deliver(now=True)
    for run in runs:
        tell.resolve(run, lambda notice: "the job was stopped")
        box.deliver(now=True)
    events = [(body["event_action"], body["dedup_key"]) for body in server.bodies]
    assert [action for action, _ in events] == ["trigger"] * 3 + ["resolve"] * 3
    keys = [key for _, key in events]
    assert len(set(keys[:3])) == 3 and sorted(keys[3:]) == sorted(keys[:3])
    assert [body["payload"]["severity"] for body in server.bodies[:3]] == ["critical", "warning", "critical"]
    assert "2 runs: ExplodingTensor" in server.bodies[0]["payload"]["summary"]
