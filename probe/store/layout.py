"""Names of files and folders in a run's directory."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

LABELS_FILE = "notes.json"

_PART_NAME = re.compile(r"^(\d{4,})-(\d{8,})-(\d{8,})\.parquet$")


@dataclass(frozen=True, order=True, slots=True)
class Part:
    """A Parquet file of a step table: the range of flushes of one attempt that it holds."""

    attempt: int
    first: int
    last: int

    @property
    def file_name(self) -> str:
        """``ATTEMPT-FIRST-LAST.parquet``."""
        return f"{self.attempt:04d}-{self.first:08d}-{self.last:08d}.parquet"

    @staticmethod
    @lru_cache(maxsize=1 << 14)
    def parse(file_name: str) -> Part | None:
        """The part of that file name, or None for any other file."""
        match = _PART_NAME.match(file_name)
        return Part(*(int(number) for number in match.groups())) if match else None


def rank_folder(run_dir: Path, table: str, rank: int) -> Path:
    """Folder of a step table of one rank."""
    return run_dir / table / f"rank={rank:05d}"


@lru_cache(maxsize=1 << 14)
def end_file(run_dir: Path, rank: int) -> Path:
    """File that says how a rank ended."""
    return run_dir / "end" / f"rank={rank:05d}.json"


def node_folder(run_dir: Path, node: str) -> Path:
    """Folder of the samples of one node."""
    return run_dir / "system" / f"node={node}"


def list_parts(folder: Path) -> list[Part]:
    """Parts in a folder in order, without those contained in another (left over by a compaction)."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = sorted((part for part in map(Part.parse, names) if part), key=lambda p: (p.attempt, p.first, -p.last))
    kept: list[Part] = []
    for part in found:
        if kept and kept[-1].attempt == part.attempt and part.last <= kept[-1].last:
            continue
        kept.append(part)
    return kept


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that appears under its name only when it is whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, json.dumps(content, indent=1).encode())
