"""TOML and YAML with the lines on which their values stand, so that a message can name the line."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

Place = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(r"""^\s*("[^"]*"|'[^']*'|[\w.-]+)\s*=""")
_LINE = re.compile(r"line (\d+)")


class FileError(ValueError):
    """What is wrong with a file, with its name and a line.

    Args:
        path: the file.
        line: counted from 1; 0 where none is known.
        text: what is wrong.
    """

    def __init__(self, path: Path, line: int, text: str) -> None:
        super().__init__(f"{path}{f':{line}' if line else ''}: {text}")


def read(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    """The table in a .toml, .yaml or .yml file, and the line of every key and entry in it.

    Raises:
        FileError: it is not one.
        OSError: it cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        content, lines = _toml(path, text)
    elif path.suffix in (".yaml", ".yml"):
        content, lines = _yaml(path, text)
    else:
        raise FileError(path, 0, f"is a {path.suffix or 'nameless'} file; expected .toml, .yaml or .yml")
    if not isinstance(content, dict):
        raise FileError(path, 1, f"holds a {type(content).__name__}; expected a table")
    return content, lines


def _toml(path: Path, text: str) -> tuple[Any, dict[Place, int]]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        content = toml.loads(text)
    except toml.TOMLDecodeError as error:
        found = _LINE.search(str(error))
        raise FileError(path, int(found[1]) if found else 0, f"not valid TOML: {error}") from None
    lines: dict[Place, int] = {}
    table: Place = ()
    counts: dict[Place, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        header, key = _HEADER.match(line), _KEY.match(line)
        if header:
            table = _numbered(_parts(header[2]), counts, new=header[1] == "[[")
            lines.setdefault(table, number)
        elif key:
            lines.setdefault((*table, *_parts(key[1])), number)
    return content, lines


def _numbered(names: Place, counts: dict[Place, int], *, new: bool) -> Place:
    """A header's place, with the number of the entry in each list of tables on the way."""
    place: Place = ()
    for position, name in enumerate(names):
        place = (*place, name)
        if new and position == len(names) - 1:
            counts[place] = counts.get(place, -1) + 1
        if place in counts:
            place = (*place, counts[place])
    return place


def _parts(dotted: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[^.\s]+", dotted))


def _yaml(path: Path, text: str) -> tuple[Any, dict[Place, int]]:
    import yaml

    try:
        content = yaml.safe_load(text)
        lines: dict[Place, int] = {}
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _walk(node, (), lines)
        return content, lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise FileError(path, line, f"not valid YAML: {error.problem}") from None


def _walk(node: Any, place: Place, lines: dict[Place, int]) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if node.id == "mapping":
        for key, value in node.value:
            lines[(*place, key.value)] = key.start_mark.line + 1
            _walk(value, (*place, key.value), lines)
    elif node.id == "sequence":
        for number, value in enumerate(node.value):
            _walk(value, (*place, number), lines)
