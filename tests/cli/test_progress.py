"""What a terminal shows while something takes time, and that nothing else sees it."""

from __future__ import annotations

import io
import sys
import time

import pytest

from stepwatch.cli.progress import busy, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def wait_for(shown: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in shown.getvalue():
        assert time.monotonic() < deadline, f"{text!r} never came: {shown.getvalue()!r}"
        time.sleep(0.01)


def test_a_terminal_is_told_what_is_done_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with pytest.raises(KeyboardInterrupt), busy("writing the report", after=0):
        wait_for(shown, "writing the report")
        raise KeyboardInterrupt
    length = len(shown.getvalue())
    assert "\x1b[2K" in shown.getvalue()[-20:], "the line is wiped, also by Ctrl-C"
    time.sleep(0.2)  # longer than its next frame would take
    assert len(shown.getvalue()) == length


def test_what_is_quick_and_what_is_no_terminal_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with busy("reading", after=3600 if stream.isatty() else 0):
            pass
        assert stream.getvalue() == ""


def test_a_bar_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with progress("judging runs", 3) as advance:
        advance()
        wait_for(shown, "1/3")
    assert "\x1b[3" not in shown.getvalue(), "no colour"
