"""Messages in words of one's own, told through a real server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stepwatch.rules.telling.channels import channel
from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.notify import NotifyAction
from stepwatch.rules.telling.outbox import Outbox
from tests.telling.conftest import Server, finding, notice

TEMPLATE = """
{% if findings %}[{{ severity }}] {{ findings | map(attribute="job_name") | unique | join(", ") }}
{% for each in findings %}
* {{ each.finding.rule }}: {{ each.finding.message }} (runbook: https://wiki.example/{{ each.finding.rule | lower }})
{% endfor %}
{% else %}all clear: {{ resolved[0].how }}
{% endif %}
"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "own.j2"
    path.write_text(TEMPLATE)
    return path


def place(server: Server) -> str:
    return f"json://127.0.0.1:{server.server_port}/"


def test_a_template_words_what_is_told(tmp_path: Path, template: Path, run: Path, server: Server) -> None:
    one = channel(place(server), template)
    box = Outbox(tmp_path / "outbox", one)
    NotifyAction([box]).apply(finding(3), run)
    box.deliver(now=True)
    one.send(Message("2", resolved=(replace(notice(run, 3), how="the job has ended"),)))
    told, ended = server.bodies
    assert told["title"] == "[error] digits"
    assert told["message"] == "* ExplodingTensor: it blew up (runbook: https://wiki.example/explodingtensor)"
    assert ended["title"] == ended["message"] == "all clear: the job has ended"


def test_what_a_template_cannot_word_is_told_all_the_same(
    tmp_path: Path, run: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "own.j2"
    path.write_text("{{ title }} {{ 1 / ((findings | length) - 2) }}")
    channel(place(server), path).send(Message("1", (notice(run, 3), notice(run, 4))))
    assert "digits" in server.bodies[0]["title"] and "it blew up" in server.bodies[0]["message"]
    assert f"{path}: division by zero; told in the usual words" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a title\n{% if severity %}", "own.j2:2: Unexpected end of template"),
        ("{{ sevrity }}", "'sevrity' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
        ("  ", "expected a title"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_at_once(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.j2"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        channel("json://127.0.0.1/", path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_template_is_for_messages_in_words(template: Path) -> None:
    with pytest.raises(ValueError, match="services that take messages for people"):
        channel("http://127.0.0.1/", template)
