"""Says several times a minute what a rank is doing, and writes its stacks when it is asked from outside."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import time
from pathlib import Path

log = logging.getLogger("stepwatch")

_INTERVAL = 2.0
_OFFSET = 11  # among the real-time signals, which scripts and schedulers leave alone
_descriptor: int | None = None  # of the latest hook's file of stacks: the signal may come as long as the process lives


class Heartbeat:
    """Writes RUN/control/beat-rank=N.json while the rank's process runs Python, and its stacks on a signal.

    The stacks of all threads go to RUN/control/stacks-rank=N.txt by :mod:`faulthandler`, which asks for no lock: also
    while an extension holds the interpreter's. The signal is named in the beat; it must not be sent to a process that
    has not named it, which it would end.

    Args:
        run_dir: the run's directory.
        rank: the rank.
    """

    def __init__(self, run_dir: Path, rank: int) -> None:
        self._path = run_dir / "control" / f"beat-rank={rank:05d}.json"
        self._stacks = run_dir / "control" / f"stacks-rank={rank:05d}.txt"
        self._next = 0.0
        self._signal = 0
        self._listens = False
        self._failed = False

    def beat(self, step: int, activity: int, phase: str) -> None:
        """Say what goes on, if it is time for that.

        Args:
            step: steps done.
            activity: when a phase ended last, by ``perf_counter_ns``.
            phase: the phase that the script is in.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _INTERVAL
        try:
            if not self._listens:
                self._listen()
            still = (time.perf_counter_ns() - activity) / 1e9
            content = {"pid": os.getpid(), "step": step, "phase": phase, "still_seconds": still}
            content["signal"] = self._signal
            beside = self._path.with_suffix(".tmp")
            beside.write_text(json.dumps(content))
            os.replace(beside, self._path)  # without fsync: after a crash of the machine nobody asks
        except (OSError, ValueError) as error:
            if not self._failed:
                log.warning("%s: what the rank is doing cannot be said: %s", self._path.parent.parent, error)
            self._failed = True

    def _listen(self) -> None:
        global _descriptor
        self._listens = True
        number = getattr(signal, "SIGRTMIN", 0) + _OFFSET
        if hasattr(signal, "SIGRTMIN") and signal.getsignal(number) is signal.SIG_DFL:
            opened = os.open(self._stacks, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            faulthandler.register(number, file=opened, all_threads=True, chain=False)
            if _descriptor is not None:
                os.close(_descriptor)
            _descriptor = opened
            self._signal = number
