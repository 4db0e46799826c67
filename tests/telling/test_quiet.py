"""In quiet hours nobody is told of what can wait, whatever the clocks do."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.rules.finding import Severity
from stepwatch.rules.telling import notify as notify_module
from stepwatch.rules.telling import outbox as outbox_module
from stepwatch.rules.telling.notify import NotifyAction
from stepwatch.rules.telling.outbox import Outbox
from stepwatch.rules.telling.quiet import QuietHours
from stepwatch.rules.telling.webhook import Webhook
from tests.telling.conftest import Server, finding


def at(text: str, zone: str = "Europe/Berlin") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def until(hours: QuietHours, text: str, severity: Severity = Severity.WARNING) -> str:
    return datetime.fromtimestamp(hours.until(at(text), severity), ZoneInfo("Europe/Berlin")).isoformat(" ", "minutes")


@pytest.mark.parametrize(
    ("moment", "told"),
    [
        ("2026-01-07 21:59", "2026-01-07 21:59+01:00"),
        ("2026-01-07 22:00", "2026-01-08 07:00+01:00"),
        ("2026-01-08 06:59", "2026-01-08 07:00+01:00"),
        ("2026-01-08 07:00", "2026-01-08 07:00+01:00"),
        ("2026-01-09 23:00", "2026-01-12 07:00+01:00"),  # from Friday evening to Monday morning
        ("2026-03-28 23:30", "2026-03-30 07:00+02:00"),  # the clocks go forward
        ("2026-10-24 23:30", "2026-10-26 07:00+01:00"),  # and back
    ],
)
def test_what_can_wait_waits_for_the_morning(moment: str, told: str) -> None:
    hours = QuietHours(["22:00-07:00 Europe/Berlin", "sat,sun 00:00-24:00 Europe/Berlin"])
    assert until(hours, moment) == told
    assert until(hours, moment, Severity.ERROR)[:16] == moment


def test_days_are_those_on_which_the_hours_begin() -> None:
    hours = QuietHours(["fri-sun 20:00-08:00 Europe/Berlin"], breaks_through=None)
    assert until(hours, "2026-01-12 03:00", Severity.ERROR) == "2026-01-12 08:00+01:00"  # Monday, since Sunday
    assert until(hours, "2026-01-09 03:00") == "2026-01-09 03:00+01:00"  # Friday


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "mon ", "sat,sun ", "thu-tue "]),
            st.integers(0, 23),
            st.integers(0, 59),
            st.integers(0, 23),
            st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"]),
        ),
        min_size=1,
        max_size=3,
    ),
    st.floats(1.7e9, 1.9e9),
)
def test_they_end_and_are_quiet_until_they_do(spans: list[tuple[str, int, int, int, str]], moment: float) -> None:
    try:
        hours = QuietHours(
            [f"{days}{begin:02}:{minute:02}-{end:02}:00 {zone}" for days, begin, minute, end, zone in spans]
        )
    except ValueError:
        return  # all hours of all days
    end = hours.until(moment, Severity.WARNING)
    assert moment <= end < moment + 8 * 86400
    assert hours.until(end, Severity.WARNING) == end
    for part in (0.1, 0.5, 0.9):
        assert hours.until(moment + part * (end - moment), Severity.WARNING) == pytest.approx(end, abs=1e-3)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("22-7 UTC", r"quiet hours are '22-7 UTC'; expected \[DAYS \]HH:MM-HH:MM ZONE"),
        ("22:00-07:00", "expected"),
        ("25:00-07:00 UTC", "expected"),
        ("someday 22:00-07:00 UTC", "expected"),
        ("22:00-07:00 Europe/Berlinn", "Europe/Berlinn is no time zone that this machine knows"),
        ("22:00-07:00 ../../etc/passwd", "expected"),
        ("00:00-24:00 UTC", "never end"),
    ],
)
def test_hours_that_are_none_are_refused(spelling: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuietHours([spelling])


def test_a_warning_of_the_night_is_told_in_the_morning_also_by_another_process(
    tmp_path: Path, run: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [datetime(2026, 1, 7, 23, tzinfo=timezone.utc).timestamp()]
    for module in (outbox_module, notify_module):
        monkeypatch.setattr(module.time, "time", lambda: clock[0])
    hours = QuietHours(["22:00-07:00 UTC"])
    for severity, messages in ((Severity.WARNING, 0), (Severity.ERROR, 1)):
        box = Outbox(tmp_path / "outbox", Webhook(server.url))
        NotifyAction([box], quiet=hours).apply(finding(3 + messages, severity=severity), run)
        box.deliver(now=True)  # also where the process ends
        assert len(server.bodies) == messages
        box.close()
    clock[0] += 8 * 3600 + 3
    box = Outbox(tmp_path / "outbox", Webhook(server.url))
    box.deliver()
    assert [body["findings"][0]["finding"]["severity"] for body in server.bodies] == ["error", "warning"]
