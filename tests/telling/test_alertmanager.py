"""Alerts begin and end in an Alertmanager: the real one where it is installed, else one that checks what it gets."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from stepwatch.rules.telling import outbox as outbox_module
from stepwatch.rules.telling.channels import channel
from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.notice import Notice
from stepwatch.rules.telling.notify import NotifyAction
from stepwatch.rules.telling.outbox import Outbox
from stepwatch.rules.telling.posting import SendError
from tests.telling.conftest import Server, finding, free_port, make_run, notice

PROGRAM = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[str]:
    """The URL of a real one."""
    if PROGRAM is None:
        pytest.skip("Alertmanager is not installed")
    config = tmp_path / "alertmanager.yml"
    config.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [PROGRAM, f"--config.file={config}", f"--storage.path={tmp_path / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None
            try:
                urllib.request.urlopen(f"{url}/-/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def active(url: str) -> dict[tuple[str, str], dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/api/v2/alerts", timeout=60) as answer:
        alerts = json.load(answer)
    return {(each["labels"]["job"], each["labels"]["alertname"]): each for each in alerts}


def ended(one: Notice) -> Notice:
    return replace(one, time=time.time() - 1000).ended("the job was stopped", time.time())


def test_an_alert_lasts_until_nothing_of_it_holds(tmp_path: Path, alertmanager: str) -> None:
    one = channel(f"alertmanager:{alertmanager}/")
    digits, faces = make_run(tmp_path / "digits"), make_run(tmp_path / "faces")
    first, second, other, overfit = (
        replace(each, message="m")
        for each in (notice(digits, 3), notice(digits, 5), notice(faces, 3), notice(digits, 9, rule="Overfit"))
    )
    one.send(Message("1", (first, second, other, overfit)))
    assert active(alertmanager).keys() == {
        ("digits", "ExplodingTensor"),
        ("digits", "Overfit"),
        ("faces", "ExplodingTensor"),
    }
    alert = active(alertmanager)["digits", "ExplodingTensor"]
    assert alert["labels"]["severity"] == "error" and alert["labels"]["run"] == str(digits)
    assert alert["annotations"]["summary"] == "digits: it blew up"
    one.send(Message("2", resolved=(ended(first), ended(other)), open=(second, overfit)))
    assert active(alertmanager).keys() == {("digits", "ExplodingTensor"), ("digits", "Overfit")}
    one.send(Message("3", resolved=(ended(second), ended(overfit))))
    assert active(alertmanager) == {}


def test_what_is_told_is_confirmed_until_it_is_resolved(
    tmp_path: Path, run: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = channel(f"alertmanager:http://me:p%40ss@{server.url.removeprefix('http://')}")
    assert "s3cr3t" not in one.name and "p%40ss" not in one.name
    box = Outbox(tmp_path / "outbox", one)
    tell = NotifyAction([box])
    tell.apply(finding(3), run)
    box.deliver(now=True)
    monkeypatch.setattr(outbox_module, "_CONFIRM_SECONDS", 0.0)
    box.deliver(now=True)
    tell.resolve(run, lambda notice: "the job was stopped")
    box.deliver(now=True)
    box.deliver(now=True)
    assert [headers["authorization"] for headers, _ in server.requests] == ["Basic bWU6cEBzcw=="] * 3
    posted = [json.loads(body)[0] for _, body in server.requests]
    begin, confirmed, end = ((_seconds(alert["startsAt"]), _seconds(alert["endsAt"])) for alert in posted)
    assert begin[0] == confirmed[0] == end[0] <= end[1]
    assert begin[1] <= confirmed[1] and begin[1] > time.time() + 800
    assert end[1] == pytest.approx(end[0] + 900, abs=1)  # long enough to be told
    assert len({json.dumps(alert["labels"]) for alert in posted}) == 1


def test_one_that_refuses_is_an_error_without_the_url(run: Path, server: Server) -> None:
    server.statuses = [400]
    with pytest.raises(SendError, match=r"^answered 400$") as error:
        channel(f"alertmanager:{server.url}").send(Message("1", (notice(run),)))
    assert error.value.final
    with pytest.raises(ValueError, match="the Alertmanager's URL is not of the form"):
        channel("alertmanager:localhost:9093")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
