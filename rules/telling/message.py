"""What is told: one or many findings in one message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Finding

SCHEMA_VERSION = 1
_MAX_LINES = 20


@dataclass(frozen=True)
class Message:
    """Findings that are told together.

    Attributes:
        id: the same whenever the same message is sent again, so that a receiver can tell.
        items: objects with the keys ``run``, ``job_name``, ``run_id`` and ``finding``, see :func:`item`.
    """

    id: str
    items: tuple[dict[str, Any], ...]

    @property
    def title(self) -> str:
        """One line."""
        first = self.items[0]
        if len(self._groups()) == 1:
            return f"{first['job_name']}: {first['finding']['rule']} at step {first['finding']['first_step']}"
        runs = len({item["run"] for item in self.items})
        errors = sum(item["finding"]["severity"] == "error" for item in self.items)
        where = first["job_name"] if runs == 1 else f"{runs} runs"
        return f"{where}: {len(self.items)} findings" + (f", {errors} of them errors" if errors else "")

    @property
    def text(self) -> str:
        """All of it in words, one paragraph for each run and rule."""
        groups = self._groups()
        lines = [_paragraph(group) for group in groups[:_MAX_LINES]]
        if len(groups) > _MAX_LINES:
            lines.append(f"... and {len(groups) - _MAX_LINES} more")
        return "\n\n".join(lines)

    def body(self) -> bytes:
        """The JSON that a webhook gets."""
        content = {"version": SCHEMA_VERSION, "id": self.id, "findings": list(self.items)}
        return json.dumps(content, allow_nan=False).encode()

    def _groups(self) -> list[list[dict[str, Any]]]:
        def key(item: dict[str, Any]) -> tuple[str, str]:
            return item["run"], item["finding"]["rule"]

        return [list(group) for _, group in groupby(sorted(self.items, key=key), key)]


def item(run_dir: Path, finding: Finding) -> dict[str, Any]:
    """A finding of a run as webhooks get it; ``finding`` is the object that ``analyze --json`` prints."""
    job_name, run_id = run_dir.name, ""
    try:
        info = Trace(run_dir).info
        job_name, run_id = info.job_name, info.run_id
    except TraceError:
        pass  # another rank's first finding may come before rank 0 has written run.json
    return {"run": str(run_dir), "job_name": job_name, "run_id": run_id, "finding": finding.to_json()}


def _paragraph(group: Sequence[dict[str, Any]]) -> str:
    first = group[0]
    finding = first["finding"]
    ranks = sorted({item["finding"]["rank"] for item in group})
    where = f"{first['job_name']} ({first['run']})" + (f", ranks {', '.join(map(str, ranks))}" if ranks != [0] else "")
    again = f" ({len(group)} times)" if len(group) > len(ranks) else ""
    return (
        f"{where}\n{finding['severity'].upper()} {finding['rule']} at step {finding['first_step']}{again}: "
        f"{finding['message']}\nTry: {finding['suggestion']}"
    )
