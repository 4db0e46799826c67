"""RUN/control: wishes that some steps be profiled, and what became of them.

A request is one file for all ranks; a newer one replaces it. In a job of several, rank 0 says at which step it is
carried out, so that all ranks profile the same steps. Each rank that is meant answers with a file of its own. A
request made before the current attempt of a rank began was meant for the attempt before, and is ignored.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepwatch.probe.store.control import ChangingFile
from stepwatch.probe.store.layout import write_json
from stepwatch.probe.store.rankfile import read_json

MOST_STEPS = 100
"""Most steps of one profile."""


@dataclass(frozen=True)
class ProfileRequest:
    """A wish that steps be profiled.

    Attributes:
        id: identifies it in answers.
        steps: how many.
        ranks: which ranks.
        reason, by: why, and who asked.
        time_ns: when.
        from_step: the first step; None: as soon as it can be.
    """

    id: str
    steps: int
    ranks: tuple[int, ...]
    reason: str
    by: str
    time_ns: int
    from_step: int | None = None


@dataclass(frozen=True)
class ProfileAnswer:
    """What became of a request.

    Attributes:
        request_id: of which.
        state: "running", "done", or "refused": it was not, or not wholly, carried out.
        detail: why, or where the trace is.
        step: the first step that was profiled, None where none was.
    """

    request_id: str
    state: str
    detail: str
    step: int | None = None


def request_profile(run_dir: Path, steps: int, ranks: Sequence[int], reason: str, by: str) -> str:
    """Ask that the next steps be profiled; returns the request's id.

    Raises:
        ValueError: too few or too many steps, or no ranks.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps is {steps}; expected 1 to {MOST_STEPS}")
    if not ranks:
        raise ValueError("no ranks are named; expected at least one")
    request = ProfileRequest(uuid.uuid4().hex, steps, tuple(ranks), reason, by, time.time_ns())
    folder = run_dir / "control"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "profile.json", asdict(request))
    return request.id


def agree_profile(run_dir: Path, request: ProfileRequest) -> None:
    """Say, as rank 0, at which step it is carried out."""
    write_json(run_dir / "control" / "profile-agreed.json", asdict(request))


def answer_profile(run_dir: Path, rank: int, answer: ProfileAnswer) -> None:
    """Say what became of a request in this rank."""
    write_json(run_dir / "control" / f"profiled-rank={rank:05d}.json", asdict(answer))


def forget_profile_answer(run_dir: Path, rank: int) -> None:
    """What an earlier attempt of the job answered no longer holds."""
    (run_dir / "control" / f"profiled-rank={rank:05d}.json").unlink(missing_ok=True)


def read_profile_answer(run_dir: Path, rank: int) -> ProfileAnswer | None:
    """What the rank answered last, or None."""
    content = read_json(run_dir / "control" / f"profiled-rank={rank:05d}.json")
    if not content:
        return None
    step = content.get("step")
    return ProfileAnswer(
        str(content.get("request_id")),
        str(content.get("state", "")),
        str(content.get("detail", "")),
        None if step is None else int(step),
    )


class ProfileRequests:
    """Hears of requests made since it was created.

    Args:
        run_dir: the run's directory.
        agreed: whether to hear of what rank 0 has agreed to, rather than of requests themselves.
    """

    def __init__(self, run_dir: Path, *, agreed: bool) -> None:
        self._file = ChangingFile(run_dir / "control" / ("profile-agreed.json" if agreed else "profile.json"))
        self._since = time.time_ns()

    def poll(self) -> ProfileRequest | None:
        """A request that has not been returned before, or None."""
        if not self._file.changed():
            return None
        content = read_json(self._file.path)
        request = _request(content) if content else None
        return request if request is not None and request.time_ns >= self._since else None


def _request(content: dict[str, Any]) -> ProfileRequest:
    from_step = content.get("from_step")
    return ProfileRequest(
        id=str(content.get("id")),
        steps=min(max(int(content.get("steps", 1)), 1), MOST_STEPS),
        ranks=tuple(int(rank) for rank in content.get("ranks", ())),
        reason=str(content.get("reason", "")),
        by=str(content.get("by", "")),
        time_ns=int(content.get("time_ns", 0)),
        from_step=None if from_step is None else int(from_step),
    )
