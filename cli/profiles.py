"""Profiled steps in numbers and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from stepwatch.probe.store.kineto.summary import MemoryUse, Operator, Summary
from stepwatch.probe.store.profiles import Profile
from stepwatch.rules.profiler.base import spell_bytes, spell_seconds

if TYPE_CHECKING:
    from rich.console import Console

_NAME = 72
_TIMES = ("duration_ns", "loader_ns", "forward_ns", "backward_ns", "optimizer_ns", "operators_ns", "device_ns")

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Head and rows, as text."""


def about_json(profile: Profile) -> dict[str, Any]:
    """JSON-compatible: which steps, and why they were profiled."""
    return {
        "rank": profile.rank,
        "first_step": profile.step,
        "steps": profile.steps,
        "by": profile.by,
        "reason": profile.reason,
        "paused_seconds": profile.paused_seconds,
        "trace": str(profile.trace),
    }


def profile_json(profile: Profile, summary: Summary) -> dict[str, Any]:
    """The same, and what they tell."""
    return {**about_json(profile), "summary": summary.to_json()}


def heading(profile: Profile) -> str:
    """Which rank and steps."""
    last = profile.step + profile.steps - 1
    steps = f"steps {profile.step} to {last}" if profile.steps > 1 else f"step {profile.step}"
    return f"rank {profile.rank}, {steps}"


def origin(profile: Profile) -> str:
    """Who asked for it and why, and what it cost."""
    if profile.source:
        return f"imported from {profile.source}"
    cost = spell_seconds(profile.paused_seconds)
    return f"asked for by {profile.by} ({profile.reason}); training stood still for {cost} to start and stop it"


def device_sentences(summary: Summary) -> list[str]:
    """How each device spent its time."""
    found = []
    for use in summary.uses:
        span = use.span_ns or 1
        shares = [
            f"{100 * part / span:.0f} % {what}"
            for part, what in (
                (use.computation_ns, "computing"),
                (use.communication_ns, "communicating alone"),
                (use.memory_ns, "only moving memory"),
                (use.idle_ns, "idle"),
            )
        ]
        text = f"device {use.device}: {', '.join(shares)} of {spell_seconds(span / 1e9)}"
        if use.idle_ns:
            causes = (("for the host", use.host_ns), ("to start kernels", use.short_ns), ("for others", use.other_ns))
            text += f" (waiting {', '.join(f'{what} {_share(part, span)}' for what, part in causes if part)})"
        if use.collectives_ns:
            text += f"; {100 * use.hidden_ns / use.collectives_ns:.0f} % of communication is hidden behind computation"
        found.append(text)
    return found


def use_table(summaries: Sequence[Summary]) -> Table:
    """How the devices of several ranks spent their time."""
    head = ("rank", "device", "ms", "computing", "communicating alone", "moving memory", "idle", "waiting for the host")
    return head, [
        (
            str(summary.rank),
            str(use.device),
            _milliseconds(use.span_ns),
            *(
                _share(part, use.span_ns)
                for part in (use.computation_ns, use.communication_ns, use.memory_ns, use.idle_ns, use.host_ns)
            ),
        )
        for summary in summaries
        for use in summary.uses
    ]


def memory_sentences(summary: Summary) -> list[str]:
    """What was allocated."""
    return [_memory_sentence(use) for use in summary.memory]


def _memory_sentence(use: MemoryUse) -> str:
    where = "the host" if use.device < 0 else f"device {use.device}"
    return (
        f"{where}: {use.allocations:,} allocations of {spell_bytes(use.allocated_bytes)} in all, "
        f"at most {spell_bytes(use.peak_bytes)} at a time"
    )


def step_table(summary: Summary, count: int) -> Table:
    """Phases of the steps, in milliseconds; of many, the medians and the slowest."""
    head = ("step", "ms", "loader", "forward", "backward", "optimizer", "in operators")
    rows = [_step_row(str(step.number), [getattr(step, name) for name in _TIMES]) for step in summary.steps]
    if len(rows) > count:
        medians = [median(getattr(step, name) for step in summary.steps) for name in _TIMES]
        slowest = sorted(range(len(rows)), key=lambda place: -summary.steps[place].duration_ns)[:count]
        rows = [_step_row(f"median of {len(rows)}", medians), *(rows[place] for place in slowest)]
    if not summary.uses:
        return head, [row[:-1] for row in rows]
    return (*head, "device busy"), rows


def _step_row(label: str, times: Sequence[float]) -> tuple[str, ...]:
    *phases, operators, device = times
    return (label, *map(_milliseconds, phases), _share(operators, phases[0]), _share(device, phases[0]))


def operator_table(operators: Sequence[Operator], whole_ns: int) -> Table:
    """Operators with their share of all self time."""
    return ("operator", "self ms", "share", "total ms", "calls", "data type"), [
        (
            shortened(each.name),
            _milliseconds(each.self_ns),
            _share(each.self_ns, whole_ns),
            _milliseconds(each.total_ns),
            f"{each.calls:,}",
            ", ".join(each.dtypes) or "-",
        )
        for each in operators
    ]


def kernel_table(summary: Summary, count: int) -> Table:
    """What ran longest on the devices."""
    whole = sum(summary.kernels_ns.values())
    return ("kernel", "kind", "ms", "share", "calls", "mean us", "max us"), [
        (
            shortened(each.name),
            each.kind,
            _milliseconds(each.total_ns),
            _share(each.total_ns, whole),
            f"{each.calls:,}",
            f"{each.total_ns / each.calls / 1e3:.3g}",
            f"{each.max_ns / 1e3:.3g}",
        )
        for each in summary.kernels[:count]
    ]


def gap_table(summary: Summary) -> Table:
    """The longest times in which a device did nothing."""
    return ("device", "gap ms", "after", "before", "the host was in"), [
        (
            str(gap.device),
            _milliseconds(gap.duration_ns),
            shortened(gap.after, 32),
            shortened(gap.before, 32),
            shortened(gap.host, 40) or "no operator",
        )
        for gap in summary.gaps
    ]


def queue_table(summary: Summary) -> Table:
    """How much work waited on each stream."""
    return ("device", "stream", "launches", "mean queue", "longest", "launch to start, us"), [
        (
            str(queue.device),
            str(queue.stream),
            f"{queue.launches:,}",
            f"{queue.mean:.1f}",
            str(queue.longest),
            f"{queue.delay_ns / 1e3:.3g}",
        )
        for queue in summary.queues
    ]


def shortened(name: str, length: int = _NAME) -> str:
    """A name without its middle, where it is long: templates of kernels are."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def print_ranks(out: Console, summaries: Sequence[Summary]) -> None:
    """How the devices of several ranks spent their time, side by side."""
    _print_table(out, "Devices of all ranks", use_table(summaries))


def print_profile(out: Console, profile: Profile, summary: Summary, count: int) -> None:
    """All of it, the longest ``count`` of each kind."""
    out.print(heading(profile), style="bold", markup=False)
    out.print(origin(profile), markup=False)
    if not profile.source:
        out.print(f"trace for ui.perfetto.dev: {profile.trace}", markup=False, soft_wrap=True)
    _print_table(out, "", step_table(summary, count))
    for text in device_sentences(summary):
        out.print(text, markup=False)
    _print_table(out, "Operators", operator_table(summary.operators[:count], summary.operators_ns))
    _print_table(out, "On the devices", kernel_table(summary, count))
    _print_table(out, "Longest gaps", gap_table(summary))
    _print_table(out, "Streams", queue_table(summary))
    if summary.memory:
        out.print("\nMemory", style="bold")
        for text in memory_sentences(summary):
            out.print(text, markup=False)


def _print_table(out: Console, title: str, table: Table) -> None:
    from rich.table import Table as Grid
    from rich.text import Text

    head, rows = table
    if not rows:
        return
    if title:
        out.print(f"\n{title}", style="bold")
    grid = Grid(box=None, pad_edge=False)
    words = {"operator", "kernel", "kind", "after", "before", "the host was in", "data type"}
    for name in head:
        grid.add_column(name, justify="left" if name in words else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    out.print(grid)


def _milliseconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.4g}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
