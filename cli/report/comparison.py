"""Puts the page about a comparison together: one HTML file that needs nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepwatch.cli.comparison import objective_words, pair_lines
from stepwatch.cli.report import charts
from stepwatch.cli.report.data import HeatMap, Series, heat_map
from stepwatch.cli.report.document import document
from stepwatch.cli.report.history import tensor_history
from stepwatch.probe.store.layout import write_atomically
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.compare.curves import Parting
from stepwatch.rules.compare.objective import series_of
from stepwatch.rules.compare.runs import Comparison, Pair

_SCALAR_CHARTS = 12
_LAYER_CHARTS = 6
_SHOWN_LAYERS = 20
_HEAT_RUNS = 4
_COLLECTIONS = ("gradients", "weights")


def write_comparison(traces: Sequence[Trace], comparison: Comparison, output: Path) -> Path:
    """Write the page about runs beside their baseline, and return its path.

    Args:
        traces: the runs, the baseline first.
        comparison: what was found of them.
        output: the file; its directory must exist.

    Raises:
        OSError: the file cannot be written.
    """
    names = dict(zip(comparison.runs, _short(comparison.runs), strict=True))
    plots: dict[str, Any] = {}
    scalars = list(_scalar_charts(traces, comparison, list(names.values()), plots))
    pairs = [
        _pair(number, pair, names, traces[0], trace, plots)
        for number, (pair, trace) in enumerate(zip(comparison.pairs, traces[1:], strict=True))
    ]
    objective = comparison.objective
    context = {
        "title": f"{', '.join(list(names.values())[1:])} beside {names[comparison.runs[0]]}",
        "runs": [{"name": name, "path": path} for path, name in names.items()],
        "summary": _summary(comparison, names),
        "differences": [
            {"key": each.key, "values": ["-" if value is None else value for value in each.values]}
            for each in comparison.differences
        ],
        "objective": None if objective is None else objective_words(objective),
        "standings": [{"name": names[each.run], "standing": each} for each in comparison.standings],
        "scalars": scalars,
        "pairs": pairs,
        "heats": list(_heats(traces, list(names.values()), plots)),
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    write_atomically(output, document("comparison.html", plots, context))
    return output


def _short(runs: Sequence[str]) -> list[str]:
    """Names of the directories, as far up as they must be told apart."""
    parts = [Path(run).resolve().parts for run in runs]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return list(runs)


def _summary(comparison: Comparison, names: dict[str, str]) -> list[str]:
    """What there is to know first, a sentence or two for each run."""
    sentences = []
    for pair in comparison.pairs:
        name, verdict = names[pair.run], pair.verdict
        if pair.identical:
            sentences.append(f"{name} is the same bit for bit in all that both recorded.")
        elif verdict is not None and verdict.better is not None:
            worse = names[pair.baseline if verdict.better == pair.run else pair.run]
            sentences.append(
                f"{names[verdict.better]} is better than {worse} by {verdict.by:.4g}, since step {verdict.since}."
            )
        elif verdict is not None:
            sentences.append(f"{name} is neither better nor worse beyond noise.")
        if pair.partings:
            first = pair.partings[0]
            sentences.append(f"The first curve of {name} to part is {first.name}, at step {first.step}.")
    return sentences or ["Nothing was recorded by which the runs could be told apart."]


def _scalar_charts(
    traces: Sequence[Trace], comparison: Comparison, names: Sequence[str], plots: dict[str, Any]
) -> Iterator[dict[str, str]]:
    """A chart for each scalar that two runs or more have, the objective first, with where it parts first."""
    series = [series_of(trace) for trace in traces]
    keys = [key for key in dict.fromkeys(key for each in series for key in each) if sum(key in s for s in series) > 1]
    objective = comparison.objective
    keys.sort(key=lambda key: objective is None or key != (objective.name, objective.mode))
    partings = [parting for pair in comparison.pairs for parting in pair.partings if parting.module is None]
    for number, (name, mode) in enumerate(keys[:_SCALAR_CHARTS]):
        lines = [
            Series(run, "TRAIN", each[name, mode].steps, each[name, mode].values)
            for run, each in zip(names, series, strict=True)
            if (name, mode) in each
        ]
        chart = charts.lines(lines, "value", height=300 if number == 0 else 220)
        steps = [parting.step for parting in partings if (parting.name, parting.mode) == (name, mode)]
        if steps:
            charts.mark_step(chart, min(steps), f"parts at step {min(steps)}")
        plots[f"scalar{number}"] = chart
        yield {"key": f"scalar{number}", "name": f"{name} [{mode.lower()}]"}


def _pair(
    number: int, pair: Pair, names: dict[str, str], baseline: Trace, other: Trace, plots: dict[str, Any]
) -> dict[str, Any]:
    layers = pair.layers()
    charted = []
    for at, parting in enumerate(layers[:_LAYER_CHARTS]):
        key = f"pair{number}layer{at}"
        lines = [
            _rms(trace, parting, name) for trace, name in ((baseline, names[pair.baseline]), (other, names[pair.run]))
        ]
        chart = charts.lines(lines, "root mean square", height=200)
        charts.mark_step(chart, parting.step, f"parts at step {parting.step}")
        plots[key] = chart
        charted.append({"key": key, "name": parting.name})
    rows = [parting for parting in pair.partings if parting.module is None] + layers[:_SHOWN_LAYERS]
    return {
        "name": names[pair.run],
        "baseline": names[pair.baseline],
        "lines": [_with_names(line, names) for line in pair_lines(pair)],
        "partings": [
            {
                "name": each.name + (f" [{each.mode.lower()}]" if each.module is None else ""),
                "step": each.step,
                "numbers": [f"{value:.4g}" for value in (*each.values, *each.last_values)],
            }
            for each in rows
        ],
        "more": max(0, len(layers) - _SHOWN_LAYERS),
        "charts": charted,
    }


def _with_names(line: str, names: dict[str, str]) -> str:
    """A sentence with the short name of the run that it begins with."""
    for path, name in names.items():
        if line.startswith(f"{path} "):
            return name + line[len(path) :]
    return line


def _rms(trace: Trace, parting: Parting, name: str) -> Series:
    """Root mean square of a tensor over the training steps at which it was saved, of the first rank."""
    rows = trace.table(
        "stats",
        columns=["step", "numel", "l2"],
        names=[parting.name],
        modes=["TRAIN", "GLOBAL"],
        ranks=trace.ranks[:1],
    )
    numel = np.maximum(rows["numel"].to_numpy(), 1)
    return Series(name, "TRAIN", rows["step"].to_numpy(), rows["l2"].to_numpy() / np.sqrt(numel))


def _heats(traces: Sequence[Trace], names: Sequence[str], plots: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Heat maps of the runs side by side, in colours that mean the same."""
    histories = {
        name: tensor_history(trace, trace.ranks[0] if trace.ranks else 0)
        for name, trace in list(zip(names, traces, strict=True))[:_HEAT_RUNS]
    }
    for collection in _COLLECTIONS:
        maps: dict[str, HeatMap] = {}
        for name, history in histories.items():
            content = heat_map(history, collection) if history is not None else None
            if content is not None:
                maps[name] = content
        if len(maps) < 2:
            continue
        shown = [charts.shown_values(content) for content in maps.values()]
        every = np.concatenate(shown)
        limits = (float(every.min()), float(every.max())) if len(every) else None
        keys = []
        for number, (name, content) in enumerate(maps.items()):
            key = f"{collection}{number}"
            plots[key] = charts.heat(content, "log10 rms", limits=limits)
            keys.append({"key": key, "name": name})
        yield {"title": collection.capitalize(), "maps": keys}
