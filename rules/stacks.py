"""Where a rank's threads are: all of them now, by a signal that it answers itself, or by lines over some seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.rankfile import read_json
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.termination import NotThatProcess, recorded_process

_STACK_SECONDS = 1.0
_RATE = 50
_MAIN = "MainThread"
_OWN = "stepwatch-"
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python", "<frozen ", "<string>")
_OURS = str(Path(__file__).resolve().parents[1] / "probe")


class NoStacks(Exception):
    """They cannot be had; the message says why."""


@dataclass(frozen=True)
class Line:
    """How much of the time a thread was in a line of the script.

    Attributes:
        thread: its name.
        share: of the thread's samples.
        line: the innermost line that is no library's, as ``function (file:line)``.
        inside: the innermost function that it had called, "" where it is the line itself.
    """

    thread: str
    share: float
    line: str
    inside: str


def read_beat(run_dir: Path, rank: int) -> dict[str, Any]:
    """What a rank said last of what it is doing; empty where it has not."""
    try:
        return read_json(run_dir / "control" / f"beat-rank={rank:05d}.json")
    except (TraceError, OSError):
        return {}


def take_stacks(trace: Trace, rank: int, beat: Mapping[str, Any]) -> str:
    """The stacks of all threads of a rank on this machine, as :mod:`faulthandler` writes them.

    The signal is sent to the recorded process only, and only if it has said that it listens.

    Raises:
        NoStacks: they cannot be had.
    """
    number, process_id = int(beat.get("signal", 0)), _process_id(trace, rank)
    if not number or beat.get("pid") != process_id:
        raise NoStacks("it has not said that it listens")
    path = trace.path / "control" / f"stacks-rank={rank:05d}.txt"
    try:
        before = path.stat().st_size
        os.kill(process_id, number)
        text = _read_from(path, before)
    except OSError as error:
        raise NoStacks(error.strerror or str(error)) from None
    if not text:
        raise NoStacks("it did not answer: it is stopped, or waits for the kernel")
    return text


def dump_stacks(trace: Trace, rank: int, beat: Mapping[str, Any]) -> str:
    """The same, "" where they cannot be had."""
    try:
        return take_stacks(trace, rank, beat)
    except NoStacks:
        return ""


def script_threads(stacks: str) -> list[str]:
    """The threads among stacks that are not the hook's own, the one that trains first."""
    threads = [text.strip("\n") for text in stacks.split("\n\n") if "File " in text]
    return [text for text in reversed(threads) if not any(map(_is_the_hooks, text.splitlines()))]


def _is_the_hooks(frame: str) -> bool:
    return "/probe/" in frame and "_run" in frame


def innermost(stacks: str) -> str:
    """Where the thread that trains is: its innermost frame."""
    for thread in script_threads(stacks):
        return next(line.strip() for line in thread.splitlines() if line.strip().startswith("File "))
    return ""


def sample_lines(trace: Trace, ranks: Sequence[int], seconds: int) -> dict[int, list[Line] | NoStacks]:
    """Lines of the script by the time that the threads of some ranks of this machine spend in them.

    py-spy reads the processes' memory, 50 times a second, and does not stop them.

    Returns:
        Of each rank its lines, those of the main thread and the most frequent first, or why there are none.

    Raises:
        ImportError: py-spy is not installed.
    """
    tool = _py_spy()
    found: dict[int, list[Line] | NoStacks] = {}
    with tempfile.TemporaryDirectory() as folder:
        running: dict[int, subprocess.Popen[str]] = {}
        try:
            for rank in ranks:
                try:
                    process_id = _process_id(trace, rank)
                except NoStacks as error:
                    found[rank] = error
                    continue
                command = [tool, "record", "--pid", str(process_id), "--duration", str(seconds), "--rate", str(_RATE)]
                command += ["--format", "raw", "--output", f"{folder}/{rank}", "--nonblocking", "--threads", "--idle"]
                running[rank] = subprocess.Popen(
                    [*command, "--full-filenames"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
            for rank, process in running.items():
                _, said = process.communicate()
                path = Path(folder, str(rank))
                found[rank] = _lines(path.read_text(errors="replace")) if path.exists() else NoStacks(_refusal(said))
        finally:
            for process in running.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()
    return found


def _process_id(trace: Trace, rank: int) -> int:
    entries = trace.attempts(rank).entries
    try:
        return int(recorded_process(entries[-1] if entries else {}).pid)
    except NotThatProcess as error:
        raise NoStacks(str(error)) from None


def _py_spy() -> str:
    tool = shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")
    if tool is None:
        raise ImportError('sampling needs py-spy: pip install "stepwatch[profile]"')
    return tool


def _refusal(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    about = next((line for line in lines if "ermission" in line or "Error" in line), lines[0] if lines else "")
    return f"py-spy could not look into it ({about or 'it says nothing'})"


def _lines(text: str) -> list[Line]:
    """Of py-spy's samples: ``thread (N): NAME;function (file:line);... COUNT`` a line."""
    counts: dict[tuple[str, str, str], int] = {}
    totals: dict[str, int] = {}
    for sample in text.splitlines():
        stack, _, count = sample.rpartition(" ")
        thread, *frames = stack.split(";")
        name = thread.partition(": ")[2] or thread
        if not frames or not count.isdigit() or name.startswith(_OWN):
            continue
        own = [frame for frame in frames if not any(part in frame for part in (*_LIBRARIES, _OURS))]
        if not own:
            continue
        inside = "" if frames[-1] == own[-1] else frames[-1].partition(" (")[0]
        key = (name, own[-1], inside)
        counts[key] = counts.get(key, 0) + int(count)
        totals[name] = totals.get(name, 0) + int(count)
    lines = [Line(name, count / totals[name], line, inside) for (name, line, inside), count in counts.items()]
    return sorted(lines, key=lambda line: (line.thread != _MAIN, line.thread, -line.share))


def _read_from(path: Path, position: int) -> str:
    """What is written behind a position, once no more comes."""
    deadline = time.monotonic() + _STACK_SECONDS
    size = position
    while time.monotonic() < deadline:
        time.sleep(0.1)
        grown = path.stat().st_size
        if grown == size > position:
            break
        size = grown
    with path.open(errors="replace") as file:
        file.seek(position)
        return file.read(64 << 10)
