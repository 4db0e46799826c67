"""Messages in words of one's own: a file with a Jinja template, of which the first line is the title."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwatch.rules.finding import Finding, Severity
from stepwatch.rules.telling.message import Message
from stepwatch.rules.telling.notice import Notice
from stepwatch.rules.telling.outbox import Channel
from stepwatch.rules.telling.services import AppriseChannel

if TYPE_CHECKING:
    from jinja2 import Template

log = logging.getLogger("stepwatch")


class InOwnWords:
    """A channel whose messages are worded by a template.

    The template gets ``findings`` and ``resolved`` as webhooks do, the worst ``severity`` of what was found, and the
    ``title`` and ``text`` that would be sent without it. It can run no code and reach no file.

    Args:
        channel: a service that takes messages for people.
        path: the template.

    Raises:
        ValueError: the template cannot be read, is none, or names what is not there; or the channel is another one.
        ImportError: Jinja is not installed.
    """

    def __init__(self, channel: Channel, path: Path) -> None:
        if not isinstance(channel, AppriseChannel):
            raise ValueError(f"{path}: a template is for services that take messages for people; this channel is none")
        self._channel = channel
        self._path = path
        self._template = _load(path)
        self.resolves = channel.resolves
        self.name = f"{channel.name}-{hashlib.sha1(str(path.absolute()).encode()).hexdigest()[:8]}"
        for example in _examples():
            self._word(example)

    def send(self, message: Message) -> str:
        """Deliver it in these words; in the usual ones where the template fails, so that nothing is lost.

        Raises:
            SendError: it was not delivered.
        """
        try:
            worded = self._word(message)
        except ValueError as error:
            log.warning("%s; told in the usual words", error)
            worded = message
        return self._channel.send(worded)

    def _word(self, message: Message) -> Message:
        from jinja2 import TemplateError

        values: dict[str, Any] = {
            "findings": [notice.to_json() for notice in message.notices],
            "resolved": [notice.to_json() for notice in message.resolved],
            "severity": message.severity,
            "title": message.title,
            "text": message.text,
        }
        try:
            title, _, text = self._template.render(values).strip().partition("\n")
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ValueError(f"{self._path}: {error}") from None
        if not title:
            raise ValueError(f"{self._path}: it makes no text; expected a title in the first line")
        return replace(message, wording=(title, text.strip() or title))


def _load(path: Path) -> Template:
    try:
        from jinja2 import StrictUndefined, TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        raise ImportError("templates need Jinja: pip install 'stepwatch[notify]'") from None
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(path.read_text())
    except TemplateSyntaxError as error:
        raise ValueError(f"{path}:{error.lineno}: {error.message}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _examples() -> tuple[Message, Message]:
    """Messages to try a template with."""
    found = Finding("ExplodingTensor", Severity.ERROR, 12, 12, ("fc.weight",), 1.0, 0.0, "a tensor is NaN", "look")
    notice = Notice("1", "/runs/example", "example", "1", 0, 0.0, found.to_json())
    return Message("1", (notice,)), Message("2", resolved=(notice.ended("the job has ended", 1.0),))
