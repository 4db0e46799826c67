"""What is told: one or many findings in one message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from stepwatch.rules.telling.notice import Notice
from stepwatch.rules.telling.posting import encode

SCHEMA_VERSION = 1
_MAX_LINES = 20
_MAX_NAMES = 10
_FEW_RUNS = 3


@dataclass(frozen=True)
class Message:
    """Findings that are told together.

    Attributes:
        id: the same whenever the same message is sent again, so that a receiver can tell.
        notices: what was found.
        resolved: what was told before and no longer holds.
        open: what was told before and still holds; looked up only where something is resolved.
        wording: title and text where they are not the usual ones.
    """

    id: str
    notices: tuple[Notice, ...] = ()
    resolved: tuple[Notice, ...] = ()
    open: tuple[Notice, ...] = ()
    wording: tuple[str, str] | None = None

    @property
    def title(self) -> str:
        """One line."""
        if self.wording is not None:
            return self.wording[0]
        if not self.notices:
            return f"resolved: {_title(self.resolved)}"
        return _title(self.notices) + (f", {len(self.resolved)} resolved" if self.resolved else "")

    @property
    def text(self) -> str:
        """All of it in words: a paragraph for each rule and run, or for a rule, where many runs share it."""
        if self.wording is not None:
            return self.wording[1]
        paragraphs = [*_paragraphs(self.notices), *_paragraphs(self.resolved)]
        if len(paragraphs) > _MAX_LINES:
            paragraphs[_MAX_LINES:] = [f"... and {len(paragraphs) - _MAX_LINES} more"]
        return "\n\n".join(paragraphs)

    @property
    def severity(self) -> str:
        """The worst of what was found; "" where all is resolved."""
        found = {notice.finding["severity"] for notice in self.notices}
        return next((each for each in ("error", "warning", "info") if each in found), "")

    def body(self) -> bytes:
        """The JSON that a webhook gets."""
        return encode(
            {
                "version": SCHEMA_VERSION,
                "id": self.id,
                "findings": [notice.to_json() for notice in self.notices],
                "resolved": [notice.to_json() for notice in self.resolved],
            }
        )


def by_rule(notices: Iterable[Notice]) -> list[list[Notice]]:
    """Those of each rule and severity, errors first; of the same rule those of one run together."""
    order = {"error": 0, "warning": 1, "info": 2}

    def key(notice: Notice) -> tuple[int, str]:
        return order.get(notice.finding["severity"], 3), notice.finding["rule"]

    ordered = sorted(notices, key=lambda notice: (*key(notice), notice.run))
    return [list(group) for _, group in groupby(ordered, key)]


def _by_run(notices: Sequence[Notice]) -> list[list[Notice]]:
    return [list(group) for _, group in groupby(notices, lambda notice: notice.run)]


def _title(notices: Sequence[Notice]) -> str:
    first, runs = notices[0], {notice.run for notice in notices}
    where = first.job_name if len(runs) == 1 else f"{len(runs)} runs"
    rules = {notice.finding["rule"] for notice in notices}
    if len(rules) == 1:
        at = f" at step {first.finding['first_step']}" if len(runs) == 1 else ""
        return f"{where}: {first.finding['rule']}{at}"
    errors = sum(notice.finding["severity"] == "error" for notice in notices)
    return f"{where}: {len(notices)} findings" + (f", {errors} of them errors" if errors else "")


def _paragraphs(notices: Sequence[Notice]) -> list[str]:
    paragraphs: list[str] = []
    for same in by_rule(notices):
        runs = _by_run(same)
        paragraphs += map(_of_a_run, runs) if len(runs) <= _FEW_RUNS else [_of_many(runs)]
    return paragraphs


def _of_a_run(same: Sequence[Notice]) -> str:
    first = same[0]
    ranks = sorted({notice.finding["rank"] for notice in same})
    where = f"{first.job_name} ({first.run})" + (f", ranks {', '.join(map(str, ranks))}" if ranks != [0] else "")
    again = f" ({len(same)} times)" if len(same) > len(ranks) else ""
    return f"{where}\n{_what(first, again)}"


def _of_many(runs: Sequence[Sequence[Notice]]) -> str:
    firsts = [run[0] for run in runs]
    names = [f"{first.job_name} (step {first.finding['first_step']})" for first in firsts[:_MAX_NAMES]]
    more = f" and {len(firsts) - _MAX_NAMES} more" if len(firsts) > _MAX_NAMES else ""
    return f"{len(firsts)} runs: {', '.join(names)}{more}\n{_what(firsts[0], f', in {firsts[0].run}')}"


def _what(notice: Notice, addition: str) -> str:
    finding = notice.finding
    at = f"{finding['rule']} at step {finding['first_step']}{addition}"
    if notice.how:
        return f"RESOLVED {at}: {notice.how}"
    return f"{finding['severity'].upper()} {at}: {finding['message']}\nTry: {finding['suggestion']}"
