"""What ``stepwatch top`` shows: the last steps of a run, its machine and what was found, on one screen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stepwatch.cli.render import sparkline
from stepwatch.cli.summary import state_of
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.profiler.base import spell_bytes, spell_seconds
from stepwatch.rules.profiler.phases import phases_of
from stepwatch.rules.step import is_loss

STEPS = 200
_SAMPLE_SECONDS = 60.0
_PHASES = {
    "loader": "red",
    "checkpoint": "magenta",
    "copy": "white",
    "data": "yellow",
    "forward": "blue",
    "backward": "cyan",
    "optimizer": "green",
    "other": "bright_black",
}
_SEVERITIES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


@dataclass
class Frame:
    """The state of a run at one time.

    Attributes:
        steps: rows of ``steps`` of the last training steps of all ranks.
        losses: the last values of each training loss, of the lowest rank.
        machine: the latest sample of each (node, device, metric).
        findings: what was recorded of findings.
    """

    title: str
    state: str
    age_seconds: float
    steps: pd.DataFrame
    losses: dict[str, list[float]] = field(default_factory=dict)
    machine: dict[tuple[str, str, str], float] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)


class Watch:
    """Reads the end of a run again and again; what lies further back is read once.

    Args:
        trace: the run.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._from: int | None = None

    def look(self) -> Frame:
        """The state of the run now."""
        trace = self._trace
        trace.refresh()
        since = (self._from, None)
        steps = trace.table("steps", steps=since, modes=["TRAIN", "GLOBAL"]).to_pandas()
        if len(steps):
            self._from = max(int(steps["step"].max()) - STEPS, 0)
            steps = steps[steps["step"] >= self._from]
        latest = int(steps["time_ns"].max()) if len(steps) else trace.info.start_ns
        frame = Frame(trace.info.job_name, state_of(trace), (time.time_ns() - latest) / 1e9, steps)
        frame.losses = self._losses()
        frame.machine = self._machine(latest)
        frame.findings = trace.findings()
        return frame

    def _losses(self) -> dict[str, list[float]]:
        rows = self._trace.table(
            "scalars",
            columns=["step", "name", "value"],
            steps=(self._from, None),
            modes=["TRAIN", "GLOBAL"],
            ranks=self._trace.ranks[:1],
        ).to_pandas()
        rows = rows.sort_values("step", kind="stable")
        return {
            str(name): group["value"].tolist() for name, group in rows.groupby("name", sort=False) if is_loss(str(name))
        }

    def _machine(self, latest: int) -> dict[tuple[str, str, str], float]:
        rows = self._trace.system(since_ns=latest - int(_SAMPLE_SECONDS * 1e9)).to_pandas()
        last = rows.drop_duplicates(["node", "device", "metric"], keep="last")
        keys = zip(last["node"], last["device"], last["metric"], strict=True)
        return dict(zip(keys, last["value"].tolist(), strict=True))


def screen(frame: Frame, width: int) -> RenderableType:
    """The whole screen.

    Args:
        frame: the state of the run.
        width: columns of the terminal.
    """
    parts: list[RenderableType] = [_head(frame), *_pace(frame, width)]
    parts += [Panel(_node(frame, node), title=f"node {node}", title_align="left") for node in _nodes(frame)]
    parts += [Panel(_findings(frame.findings), title="findings", title_align="left")]
    return Group(*parts)


def _head(frame: Frame) -> Text:
    style = "green" if frame.state == "live" else "yellow"
    text = Text.assemble((frame.title, "bold"), "  ", (frame.state, style))
    if len(frame.steps):
        text.append(f"  step {int(frame.steps['step'].max())}, {spell_seconds(max(frame.age_seconds, 0.0))} ago")
    return text


def _pace(frame: Frame, width: int) -> Iterator[RenderableType]:
    steps = frame.steps[frame.steps["duration_ns"].fillna(0) > 0]
    if steps.empty:
        yield Text("no step has ended yet", style="dim")
        return
    ranks = steps["rank"].nunique()
    seconds = steps["duration_ns"] / 1e9
    per_rank = max(seconds.sum() / ranks, 1e-9)
    samples = steps["samples"].fillna(0).sum() / per_rank
    line = Text(f"{len(steps) / ranks / per_rank:.4g} steps/s")
    if samples:
        line.append(f", {samples:.4g} samples/s")
    low, median, high = np.percentile(seconds, (5, 50, 95))
    line.append(f"; a step takes {spell_seconds(median)} ({spell_seconds(low)} to {spell_seconds(high)})")
    yield line
    losses = list(frame.losses.items())[:3]
    room = max(map(len, ("step time", *(name for name, _ in losses))))
    yield Text(f"  {'step time':<{room}}  {sparkline(seconds.tolist()[-80:], 60)}")
    for name, values in losses:
        yield Text(f"  {name:<{room}}  {sparkline(values, 60)} {values[-1]:.4g}")
    by_rank = {rank: _shares(steps[steps["rank"] == rank]) for rank in sorted(steps["rank"].unique().tolist())}
    yield Text.assemble(
        *(piece for name, colour in _PHASES.items() for piece in ((f" {name} ", f"reverse {colour}"), " "))
    )
    for rank, shares in list(by_rank.items())[:16]:
        yield _stacked(f"rank {rank}", shares, max(width - 30, 20))
    if len(by_rank) > 16:
        yield Text(f"... and {len(by_rank) - 16} more ranks", style="dim")


def _shares(steps: pd.DataFrame) -> dict[str, float]:
    total = float(steps["duration_ns"].sum()) or 1.0
    sums = {name: float(steps[f"{name}_ns"].fillna(0).sum()) for name in _PHASES if name != "other"}
    return {name: float(part) / total for name, part in phases_of({"duration": total, **sums}).items()}


def _stacked(label: str, shares: dict[str, float], width: int) -> Text:
    text = Text(f"  {label:>8} ")
    done = 0.0
    drawn = 0
    for name, colour in _PHASES.items():
        done += shares[name]
        cells = round(min(done, 1.0) * width) - drawn
        drawn += max(cells, 0)
        text.append("█" * max(cells, 0), colour)
    largest = max(shares, key=shares.__getitem__)
    text.append(f" {largest} {100 * shares[largest]:.0f} %")
    return text


def _nodes(frame: Frame) -> list[str]:
    return sorted({node for node, _, _ in frame.machine})


def _node(frame: Frame, node: str) -> RenderableType:
    values = {(device, metric): value for (of, device, metric), value in frame.machine.items() if of == node}
    table = Table.grid(padding=(0, 2))
    table.add_row("CPU", _bar(values.get(("node", "cpu_percent"))), _text(values, ("node", "load_1min"), "load {:.2f}"))
    used, total = values.get(("node", "memory_used_bytes")), values.get(("node", "memory_total_bytes"))
    of = f"{spell_bytes(used)} of {spell_bytes(total)}" if used is not None and total else ""
    table.add_row("memory", _bar(values.get(("node", "memory_percent"))), of)
    if ("cgroup", "memory_limit_bytes") in values and ("cgroup", "memory_used_bytes") in values:
        limit, held = values["cgroup", "memory_limit_bytes"], values["cgroup", "memory_used_bytes"]
        table.add_row("container", _bar(100 * held / limit), f"{spell_bytes(held)} of {spell_bytes(limit)}")
    rates = [
        f"{label} {spell_bytes(value)}/s"
        for label, metric in (
            ("read", "disk_read_bytes_per_s"),
            ("written", "disk_write_bytes_per_s"),
            ("received", "network_receive_bytes_per_s"),
            ("sent", "network_send_bytes_per_s"),
        )
        if (value := values.get(("node", metric))) is not None
    ]
    job = values.get(("job", "memory_rss_bytes"))
    if job is not None:
        count = values.get(("job", "processes"), 0)
        table.add_row("job", f"{count:.0f} processes", f"{spell_bytes(job)} resident")
    if rates:
        table.add_row("traffic", "", ", ".join(rates))
    for uuid in sorted(device for device, metric in values if metric == "utilization_percent"):
        memory = [values.get((uuid, f"memory_{name}_bytes")) for name in ("used", "total")]
        about = [f"{spell_bytes(memory[0])} of {spell_bytes(memory[1])}"] if memory[0] and memory[1] else []
        about += [
            text
            for metric, form in (
                ("power_watts", "{:.0f} W"),
                ("temperature_celsius", "{:.0f} °C"),
                ("clock_sm_mhz", "{:.0f} MHz"),
            )
            if (text := _text(values, (uuid, metric), form))
        ]
        told = Text(", ".join(about))
        if values.get((uuid, "throttled_thermal")):
            told.append(", hot" if about else "hot", "bold red")
        table.add_row(uuid[:12], _bar(values[uuid, "utilization_percent"]), told)
    return table


def _text(values: dict[tuple[str, str], float], key: tuple[str, str], form: str) -> str:
    return form.format(values[key]) if key in values else ""


def _bar(percent: float | None, width: int = 24) -> Text:
    if percent is None:
        return Text("-", style="dim")
    filled = round(min(max(percent, 0.0), 100.0) / 100 * width)
    return Text.assemble(("█" * filled, "green"), ("░" * (width - filled), "bright_black"), f" {percent:3.0f} %")


def _findings(rows: Sequence[dict[str, Any]]) -> RenderableType:
    if not rows:
        return Text("none recorded; stepwatch watch judges a run beside it, rules= in the hook within it", style="dim")
    return Group(
        *(
            Text.assemble(
                (row["severity"], _SEVERITIES.get(row["severity"], "")),
                f" {row['rule']} at step {row['last_step']}: {row['message']}",
            )
            for row in list(rows)[-8:]
        )
    )
