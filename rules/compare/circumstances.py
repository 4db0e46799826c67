"""How runs were made: tags, commands, configuration, versions, environment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwatch.probe.store.labels import read_labels
from stepwatch.probe.store.reader import Trace


@dataclass(frozen=True)
class Difference:
    """Something about how the runs were made in which they differ; ``values`` by run, None where it has none."""

    key: str
    values: tuple[str | None, ...]


def differences(traces: Sequence[Trace]) -> list[Difference]:
    """In what the runs differ as to command, configuration, versions and environment."""
    described = [_describe(trace) for trace in traces]
    keys = dict.fromkeys(key for entry in described for key in entry)
    found = [Difference(key, tuple(entry.get(key) for entry in described)) for key in keys]
    return [difference for difference in found if len(set(difference.values)) > 1]


def _describe(trace: Trace) -> dict[str, str]:
    info = trace.info
    own = trace.source.resolve().name
    command = ["RUN" if Path(word).name == own else word for word in info.command]
    flat = {f"command {key}": value for key, value in _options(command)}
    flat.update({f"config {key}": value for key, value in _flatten(info.config)})
    flat.update({f"code {key}": value for key, value in info.code.items()})
    flat.update({f"version {key}": value for key, value in info.versions.items()})
    tags = " ".join(sorted(read_labels(trace.source).tags))
    return {**({"tags": tags} if tags else {}), **flat, "host": info.host, "world_size": str(info.world_size)}


def _options(command: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options by name, other words by position."""
    position = itertools.count()
    words = list(command)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("-") or name.lstrip("-")[:1].isdigit():
            yield str(next(position)), word
        elif equals:
            yield name, value
        else:
            yield name, words.pop(0) if words and not words[0].startswith("-") else "given"


def _flatten(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(content)
