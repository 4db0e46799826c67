"""Hours in which nobody is told of what can wait."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from stepwatch.rules.finding import Severity

_FORM = re.compile(r"(?:(?P<days>\S+)\s+)?(?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)\s+(?P<zone>[A-Za-z][\w/+-]*)")
_WEEK = 7 * 86400.0
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EXPECTED = 'expected [DAYS ]HH:MM-HH:MM ZONE, as in "22:00-07:00 Europe/Berlin" or "sat,sun 00:00-24:00 UTC"'


@dataclass(frozen=True)
class _Span:
    """Hours of some days in a time zone; hours that end before they begin end on the next day."""

    days: frozenset[int]
    begin: time
    end: time
    over_midnight: bool
    zone: ZoneInfo

    def around(self, moment: float) -> Iterator[tuple[float, float]]:
        """Beginnings and ends, seconds since the epoch, of those that a moment can lie in."""
        today = datetime.fromtimestamp(moment, self.zone).date()
        for day in (today - timedelta(days=1), today):
            if day.weekday() in self.days:
                last = day + timedelta(days=self.over_midnight)
                yield (
                    datetime.combine(day, self.begin, self.zone).timestamp(),
                    datetime.combine(last, self.end, self.zone).timestamp(),
                )


class QuietHours:
    """Until when something that was found has to wait.

    Args:
        spellings: ``[DAYS ]HH:MM-HH:MM ZONE`` each: days such as ``sat,sun`` or ``mon-fri``, all by default; hours by
            the clocks of a time zone of the IANA database. Hours that end before they begin end on the next day.
        breaks_through: severity from which something is told all the same; None for none.

    Attributes:
        spellings: as they were given.

    Raises:
        ValueError: one is not of that form, or its zone is not known.
    """

    def __init__(self, spellings: Sequence[str], breaks_through: Severity | None = Severity.ERROR) -> None:
        self.spellings = tuple(spellings)
        self._spans = [_span(spelling) for spelling in spellings]
        self._breaks_through = breaks_through
        if spellings and self._end(0.0) > _WEEK:
            raise ValueError(f"quiet hours are {', '.join(map(repr, spellings))}; they never end")

    def until(self, moment: float, severity: Severity) -> float:
        """When it may be told: the moment itself, or the end of the quiet hours that it lies in.

        Args:
            moment: seconds since the epoch.
            severity: how bad it is.
        """
        if self._breaks_through is not None and severity.rank >= self._breaks_through.rank:
            return moment
        return self._end(moment)

    def _end(self, moment: float) -> float:
        last = moment + _WEEK
        while ends := [end for span in self._spans for begin, end in span.around(moment) if begin <= moment < end]:
            moment = max(ends)
            if moment > last:
                break
        return moment


def _span(spelling: str) -> _Span:
    found = _FORM.fullmatch(spelling.strip())
    if not found:
        raise ValueError(f"quiet hours are {spelling!r}; {_EXPECTED}")
    try:
        zone = ZoneInfo(found["zone"])
    except (ValueError, OSError, KeyError):
        raise ValueError(
            f"quiet hours are {spelling!r}: {found['zone']} is no time zone that this machine knows (where it knows "
            "none at all: pip install tzdata)"
        ) from None
    try:
        begin, end = (_time(found[name]) for name in ("begin", "end"))
        days = _days(found["days"])
    except ValueError:
        raise ValueError(f"quiet hours are {spelling!r}; {_EXPECTED}") from None
    return _Span(days, begin, end, end <= begin, zone)


def _time(text: str) -> time:
    return time.fromisoformat("00:00" if text == "24:00" else text)


def _days(text: str | None) -> frozenset[int]:
    days: set[int] = set()
    for part in (text or "mon-sun").lower().split(","):
        first, _, last = part.partition("-")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        days.update((begin + n) % 7 for n in range((end - begin) % 7 + 1))
    return frozenset(days)
