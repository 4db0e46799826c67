"""How a run shows itself in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from stepwatch.probe.store.reader import Trace

_SHOWN_SCALARS = 20
_WIDTH, _HEIGHT, _POINTS = 160, 24, 80


def run_html(trace: Trace) -> str:
    """A few lines of HTML: how the run stands, its scalars, what was found. Every name from the trace is escaped."""
    steps = trace.table("steps", columns=["step"], ranks=trace.ranks[:1])
    count = len(np.unique(steps["step"].to_numpy()))
    parts = [
        f"<b>{escape(trace.info.job_name)}</b> ({escape(str(trace.source))}): {escape(trace.status())}, {count} steps, "
        f"{len(trace.ranks)} rank{'s' if len(trace.ranks) != 1 else ''}, {len(trace.tensors())} tensors"
    ]
    rows = trace.table("scalars", columns=["name", "mode", "step", "value"], ranks=trace.ranks[:1]).to_pandas()
    lines = []
    for (name, mode), group in rows.groupby(["name", "mode"], sort=False):
        values = group["value"].to_numpy(np.float64)
        cells = [escape(str(name)), escape(str(mode)), _spark(values), f"{values[-1]:.5g}"]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    if lines:
        parts.append("<table><tr><th>scalar</th><th>mode</th><th></th><th>last</th></tr>")
        parts.append("".join(lines[:_SHOWN_SCALARS]) + "</table>")
    if len(lines) > _SHOWN_SCALARS:
        parts.append(f"and {len(lines) - _SHOWN_SCALARS} more scalars")
    parts += [
        f"<div>step {row['last_step']}: <b>{escape(row['rule'])}</b>: {escape(row['message'])}</div>"
        for row in trace.findings()
    ]
    return "\n".join(parts)


def _spark(values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    """The series as a small drawing; what is not finite is a gap."""
    every = np.asarray(values, np.float64)
    shown = every[np.linspace(0, len(every) - 1, min(len(every), _POINTS)).astype(int)]
    finite = shown[np.isfinite(shown)]
    if not len(finite):
        return ""
    low, span = float(finite.min()), float(np.ptp(finite)) or 1.0
    path, pen = [], "M"
    for index, value in enumerate(shown):
        if not np.isfinite(value):
            pen = "M"
            continue
        x = _WIDTH * index / max(1, len(shown) - 1)
        path.append(f"{pen}{x:.1f},{_HEIGHT - 2 - (_HEIGHT - 4) * (value - low) / span:.1f}")
        pen = "L"
    line = f'<path d="{"".join(path)}" fill="none" stroke="currentColor"/>'
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="curve">{line}</svg>'
