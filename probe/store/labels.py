"""What people say of a run: tags, a note, and which run of a directory the others are held against.

Tags and note stand in RUN/notes.json, the baseline of a directory in DIR/baseline.json; run.json, which says how the
run was made, is never written again for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.layout import LABELS_FILE, write_json
from stepwatch.probe.store.rankfile import read_json

BASELINE_FILE = "baseline.json"
_TAG = re.compile(r"[^\s,]{1,100}")


@dataclass(frozen=True)
class Labels:
    """Tags in the order in which they were given, and a note."""

    tags: tuple[str, ...] = ()
    note: str = ""

    def grouped(self) -> dict[str, str]:
        """Tags of the form KEY=VALUE."""
        return dict(tag.split("=", 1) for tag in self.tags if "=" in tag)


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags, each once.

    Raises:
        ValueError: a tag that is not a word.
    """
    if isinstance(tags, str):
        raise ValueError(f"tags is {tags!r}; expected a sequence of words")
    for tag in tags:
        if not isinstance(tag, str) or not _TAG.fullmatch(tag):
            raise ValueError(f"tag {tag!r} is not one; expected a word such as sweep-7 or team=vision, without commas")
    return tuple(dict.fromkeys(tags))


def read_labels(run: Path) -> Labels:
    """What is said of the run in that directory; nothing where nobody has said anything, or it cannot be read."""
    try:
        content = read_json(run / LABELS_FILE)
    except (TraceError, OSError):
        return Labels()
    tags, note = content.get("tags"), content.get("note")
    listed = tags if isinstance(tags, list) else []
    return Labels(tuple(tag for tag in listed if isinstance(tag, str)), note if isinstance(note, str) else "")


def change_labels(run: Path, *, add: Iterable[str] = (), remove: Iterable[str] = (), note: str | None = None) -> Labels:
    """Say something of a run, and return all that is then said of it.

    Args:
        run: its directory.
        add, remove: tags.
        note: takes the place of the note that is there; "" removes it, None leaves it.

    Raises:
        ValueError: a tag that is not a word, or one to remove that the run does not have.
        OSError: the directory cannot be written.
    """
    added, gone = checked_tags(add), tuple(remove)
    with _alone(run):
        known = read_labels(run)
        for tag in gone:
            if tag not in known.tags:
                raise ValueError(f"{run}: has no tag {tag!r}; its tags: {', '.join(known.tags) or 'none'}")
        tags = tuple(tag for tag in dict.fromkeys((*known.tags, *added)) if tag not in gone)
        changed = Labels(tags, known.note if note is None else note.strip())
        if changed != known:
            write_json(run / LABELS_FILE, {"tags": list(changed.tags), "note": changed.note})
    return changed


def baseline_of(folder: Path) -> Path | None:
    """The run directly below a directory that the others there are held against."""
    try:
        name = json.loads((folder / BASELINE_FILE).read_bytes())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(name, str) or Path(name).name != name:
        return None
    from stepwatch.probe.store.discovery import is_run

    return folder / name if is_run(folder / name) else None


def is_baseline(run: Path) -> bool:
    """Whether the others beside it are held against this run."""
    whole = Path(os.path.abspath(run))
    return baseline_of(whole.parent) == whole


def mark_baseline(run: Path) -> None:
    """Make a run the baseline of the directory that it lies in, in place of another.

    Raises:
        OSError: the directory cannot be written.
    """
    whole = Path(os.path.abspath(run))
    write_json(whole.parent / BASELINE_FILE, {"run": whole.name})


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """One process at a time changes the labels of a run."""
    folder = os.open(run, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
