"""A comparison of runs in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepwatch.rules.compare.objective import Objective
    from stepwatch.rules.compare.runs import Pair

_SHOWN_TENSORS = 5


def objective_words(objective: Objective) -> str:
    """By what runs are judged."""
    goal = "lower" if objective.goal == "min" else "higher"
    return f"{objective.name} [{objective.mode}], {goal} is better"


def pair_lines(pair: Pair) -> list[str]:
    """Which of two runs is better, whether they are the same, and what could not be compared."""
    lines = []
    verdict = pair.verdict
    if verdict is not None:
        note = f" ({verdict.note})" if verdict.note else ""
        if verdict.better is None:
            lines.append(f"neither is better beyond noise{note}")
        else:
            lines.append(f"{verdict.better} is better by {verdict.by:.4g}, since step {verdict.since}{note}")
    first = pair.first_difference
    if first is not None:
        shown = ", ".join(first.tensors[:_SHOWN_TENSORS])
        if len(first.tensors) > _SHOWN_TENSORS:
            shown += f" and {len(first.tensors) - _SHOWN_TENSORS} more"
        rank = f", rank {first.rank}" if first.rank else ""
        numbers = f", {first.column} {first.values[0]!r} and {first.values[1]!r}" if first.values else ""
        lines.append(f"the same bit for bit until step {first.step} [{first.mode}{rank}], where these differ: {shown}")
        lines.append(f"first {first.tensors[0]}{numbers}: {first.meaning}")
    elif pair.identical:
        lines.append(
            f"the same bit for bit in all that both recorded: {pair.steps} steps, {pair.saved_steps} with statistics"
        )
    return lines + [f"note: {note}" for note in pair.notes]
