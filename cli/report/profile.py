"""The report's parts about time and machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stepwatch.cli.profile import DEVICE_METRICS, time_profile
from stepwatch.cli.report import charts
from stepwatch.cli.report.boosting import Part
from stepwatch.cli.report.data import HeatMap
from stepwatch.cli.series import Series
from stepwatch.cli.step_times import step_times
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.finding import Finding
from stepwatch.rules.profiler.base import spell_bytes, spell_seconds
from stepwatch.rules.profiler.phases import PHASES

_COLUMNS = 240
_GPUS = ("GPU-", "MIG-")
_SINGLE_GPUS = 4
_CHARTS = (
    ("Use of processors and GPUs", "percent", 1.0, ("cpu_percent", "utilization_percent", "iowait_percent")),
    ("Memory", "GiB", 2.0**30, ("memory_rss_bytes", "memory_used_bytes")),
    (
        "Disk and network",
        "MiB/s",
        2.0**20,
        (
            "disk_read_bytes_per_s",
            "disk_write_bytes_per_s",
            "network_receive_bytes_per_s",
            "network_send_bytes_per_s",
        ),
    ),
    ("Power", "watts", 1.0, ("power_watts",)),
)


def time_parts(trace: Trace, findings: Sequence[Finding]) -> list[Part]:
    """Where the steps' time goes; empty where no step was timed."""
    rank = trace.ranks[0] if trace.ranks else 0
    times = step_times(trace, rank)
    if times.empty:
        return []
    numbers = time_profile(trace)
    parts = [
        Part(
            "Phases over steps",
            f"Of rank {rank}; slow steps are kept.",
            charts.stacked_times(times, findings),
            wide=True,
        ),
        _phase_table(times),
        *_device_phases(numbers["on_device"]),
        _job_table(numbers["seconds"]),
    ]
    if numbers["throughput"]:
        parts.append(_throughput_table(numbers["throughput"]))
    if len(numbers["ranks"]) > 1:
        parts.append(_rank_table(numbers))
        parts.append(_rank_heat({rank: step_times(trace, int(rank)) for rank in numbers["ranks"]}, findings))
    if numbers["outliers"]:
        parts.append(_outlier_table(numbers["outliers"]))
    if numbers["loading"]:
        parts.append(_loading_table(numbers["loading"]))
    return parts


def machine_parts(trace: Trace, series: Series, findings: Sequence[Finding]) -> list[Part]:
    """What the machine did, by its series of :data:`DEVICE_METRICS`; empty where it was not sampled."""
    several = len({node for node, _, _ in series}) > 1
    start = trace.info.start_ns
    last = max((int(times[-1]) for times, _ in series.values()), default=start)
    second, x = _axis((last - start) / 1e9)
    marks = [(finding, at / second) for finding, at in _when(trace, findings)]
    gpus = {(node, device) for node, device, _ in series if device.startswith(_GPUS)}
    parts = []
    for title, unit, size, metrics in _CHARTS:
        lines: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
        for (node, device, metric), (times, values) in series.items():
            if metric in metrics and not device.startswith("core:"):
                many = device.startswith(_GPUS) and len(gpus) > _SINGLE_GPUS
                label = _label("" if many or not several else node, f"{len(gpus)} GPUs" if many else device, metric)
                lines.setdefault(label, []).append(((times - start) / 1e9 / second, values / size))
        if lines:
            parts.append(Part(title, "", charts.samples(lines, unit, marks, x=x), wide=True))
    heat = _use_by_device(series, start, several, second)
    if heat is not None:
        parts.append(
            Part(
                "Every core and GPU",
                "Percent; the largest value of each stretch of time.",
                charts.heat(heat, "percent", x=x, limits=(0, 100)),
                wide=True,
            )
        )
    if parts:
        parts.append(_device_table(series))
    return parts


def _phase_table(times: pd.DataFrame) -> Part:
    total = float(times["duration"].sum())
    rows = [
        (
            phase,
            *(_number(value) for value in np.percentile(times[phase], (50, 95, 99))),
            f"{100 * float(times[phase].sum()) / total:.1f} %",
        )
        for phase in ("duration", *PHASES, "hook", *(["collective"] if times["collective"].any() else []))
    ]
    text = (
        "Host time, in milliseconds. Data is what passes before the forward pass beside waiting for the loader and "
        "checkpoints. The hook's own time and collectives, in which a rank waits for others, are part of the phases in "
        "which they are."
    )
    return Part("Phases", text, head=("phase", "median", "p95", "p99", "share"), rows=rows)


def _device_phases(by_rank: dict[str, dict[str, dict[str, float]]]) -> Iterator[Part]:
    """The phases on the devices, by rank; nothing where none were told."""
    rows = [
        (f"rank {rank}", phase, *(_number(spread[name]) for name in ("p50_ms", "p95_ms", "p99_ms")))
        for rank, phases in by_rank.items()
        for phase, spread in phases.items()
    ]
    if rows:
        text = (
            "From when the device entered a phase to when it left it, in milliseconds, of about one step in a second. "
            "Collectives are what it stood still for others."
        )
        yield Part("Phases on the device", text, head=("rank", "phase", "median", "p95", "p99"), rows=rows)


def _job_table(seconds: dict[str, float]) -> Part:
    total = seconds["total"] or 1.0
    rows = [
        (name.replace("_", " "), spell_seconds(value), f"{100 * value / total:.1f} %")
        for name, value in seconds.items()
    ]
    return Part("The job", "From the hook's start to the end.", head=("part", "time", "share"), rows=rows)


def _throughput_table(throughput: dict[str, float]) -> Part:
    spoken = {
        "samples_per_second": ("samples a second", "{:.4g}"),
        "tokens_per_second": ("tokens a second", "{:.4g}"),
        "flops_per_second": ("floating-point operations a second", "{:.3g}"),
        "flops_utilization": ("of the devices' peak (MFU)", "{:.1%}"),
    }
    rows = [(what, form.format(throughput[name])) for name, (what, form) in spoken.items() if name in throughput]
    text = "Of all ranks, at their median step. Operations and tokens are those of one step after the warm-up."
    return Part("Throughput", text, head=("", "value"), rows=rows)


def _rank_table(numbers: dict[str, Any]) -> Part:
    rows = []
    for rank, spread in numbers["ranks"].items():
        shares = numbers["shares"][rank]
        rows.append(
            (
                f"rank {rank}",
                _number(spread["duration"]["p50_ms"]),
                _number(spread["duration"]["p95_ms"]),
                *(f"{100 * shares[phase]:.0f} %" for phase in PHASES),
                f"{100 * numbers['collectives'][rank]:.0f} %",
            )
        )
    text = (
        "Ranks that reduce their gradients wait for each other inside the backward pass: the slow one waits least. "
        "Collectives are what was waited for others, within the phases."
    )
    head = ("rank", "median, ms", "p95, ms", *PHASES, "collectives")
    return Part("Ranks", text, head=head, rows=rows, wide=True)


def _rank_heat(by_rank: Mapping[str, pd.DataFrame], findings: Sequence[Finding]) -> Part:
    """What each rank worked on its own over the steps, the most of each stretch."""
    low = min(int(times["step"].min()) for times in by_rank.values())
    high = max(int(times["step"].max()) for times in by_rank.values())
    edges = np.linspace(low, high + 1, min(_COLUMNS, high + 1 - low) + 1)
    values = np.full((len(by_rank), len(edges) - 1), np.nan)
    for row, times in enumerate(by_rank.values()):
        column = np.searchsorted(edges, times["step"].to_numpy(), side="right") - 1
        np.fmax.at(values[row], column, (times["duration"] - times["collective"]).to_numpy())
    # A slow step now and then would hide what goes on all the time.
    values = np.minimum(values, 1.5 * np.nanpercentile(values, 99))
    content = HeatMap([f"rank {rank}" for rank in by_rank], edges[:-1], edges[1:], values, np.zeros(values.shape, bool))
    return Part(
        "Every rank",
        "Milliseconds of the step without what was waited for other ranks in collectives, the most of each stretch of "
        "steps: the rank that the others wait for stands out.",
        charts.heat(content, "ms", findings),
        wide=True,
    )


def _outlier_table(outliers: list[dict[str, Any]]) -> Part:
    rows = [
        (
            str(row["step"]),
            _number(row["duration_ms"]),
            row["phase"],
            f"+{_number(row['excess_ms'])}",
            "; ".join(row["happened"]) or "-",
        )
        for row in outliers
    ]
    text = (
        f"More than twice the median of {_number(outliers[0]['median_ms'])} ms, the phase that took most of the excess "
        "and what is known of that time."
    )
    head = ("step", "ms", "phase", "ms more than usual", "what happened")
    return Part("Slowest steps", text, head=head, rows=rows, wide=True)


def _loading_table(loading: dict[str, Any]) -> Part:
    rows = [
        ("workers", str(loading["workers"])),
        ("share of the time spent waiting for it", f"{100 * loading['wait_share']:.1f} %"),
        ("samples per second", f"{loading['samples_per_second']:.4g}"),
        ("workers that would feed the training", str(loading["workers_needed"])),
    ]
    return Part("Data loader", "", head=("", "value"), rows=rows)


def _device_table(series: Series) -> Part:
    rows = []
    for (node, device, metric), (_, values) in series.items():
        if device.startswith("core:"):
            continue
        unit = DEVICE_METRICS[metric]
        spell = spell_bytes if unit.startswith("bytes") else _number
        numbers = [spell(float(value)) for value in (values.max(), *np.percentile(values, (99, 95, 50)), values.min())]
        rows.append((f"{node} {device} {metric}", *numbers))
    return Part(
        "Use in numbers", "", head=("device and metric", "max", "p99", "p95", "median", "min"), rows=rows, wide=True
    )


def _number(value: float) -> str:
    """Three digits, or all of a larger one."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def _axis(seconds: float) -> tuple[float, str]:
    """The unit of a chart over that time, in seconds, and what its axis is called."""
    size, name = next(
        ((size, name) for size, name in ((3600.0, "hours"), (60.0, "minutes")) if seconds >= 5 * size), (1.0, "seconds")
    )
    return size, f"{name} since the start"


def _label(node: str, device: str, metric: str) -> str:
    short = device if not device.startswith(_GPUS) else device[:12]
    name = metric.removesuffix("_percent").removesuffix("_bytes").removesuffix("_bytes_per_s")
    return " ".join(part for part in (node, short, name) if part)


def _when(trace: Trace, findings: Sequence[Finding]) -> list[tuple[Finding, float]]:
    """Findings with the time of the step at which they were certain, in seconds since the start."""
    found = []
    for rank in {finding.rank for finding in findings}:
        times = step_times(trace, rank)
        if times.empty:
            continue
        ends = times.sort_values("step")
        for finding in findings:
            if finding.rank == rank:
                at = min(int(np.searchsorted(ends["step"].to_numpy(), finding.last_step)), len(ends) - 1)
                found.append((finding, (int(ends["end_ns"].iloc[at]) - trace.info.start_ns) / 1e9))
    return found


def _use_by_device(series: Series, start: int, several: bool, second: float) -> HeatMap | None:
    """Use of each core and GPU over time: the largest of each stretch, and of a stretch without one what was before.

    ``second`` is the unit of time, in seconds.
    """
    chosen = {
        _label(node if several else "", device, ""): line
        for (node, device, metric), line in series.items()
        if metric == "utilization_percent" or (metric == "cpu_percent" and device.startswith("core:"))
    }
    if not chosen:
        return None
    seconds = {name: (times - start) / 1e9 / second for name, (times, _) in chosen.items()}
    low, high = min(float(t[0]) for t in seconds.values()), max(float(t[-1]) for t in seconds.values())
    count = max(min(_COLUMNS, min(map(len, seconds.values()))), 1)
    edges = np.linspace(low, high + 1e-9, count + 1)
    values = np.full((len(chosen), count), np.nan)
    for row, (name, (_, use)) in enumerate(chosen.items()):
        column = np.clip(np.searchsorted(edges, seconds[name], side="right") - 1, 0, count - 1)
        np.fmax.at(values[row], column, use)
        values[row] = pd.Series(values[row]).ffill().to_numpy()
    return HeatMap(list(chosen), edges[:-1], edges[1:], values, np.zeros_like(values, dtype=bool))
