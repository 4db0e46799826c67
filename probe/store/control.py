"""RUN/control: requests to stop a job, and its acknowledgements.

A request is one file for all ranks. In a job of several, rank 0 says at which step all of them stop: a rank that
stopped a step earlier would leave the others waiting for it in a collective. Each rank answers with a file of its
own when it has stopped. A request
that is there when an attempt of a rank begins was meant for the attempt before, and is ignored; no clock is asked, as
those who ask may have another.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from stepwatch.probe.store.layout import write_json
from stepwatch.probe.store.rankfile import read_json


@dataclass(frozen=True)
class StopRequest:
    """A wish that the job stop at its next step.

    Attributes:
        id: identifies it in acknowledgements.
        reason: why.
        by: "hook", "watch" or a user's name.
        time_ns: when.
    """

    id: str
    reason: str
    by: str
    time_ns: int


@dataclass(frozen=True)
class Acknowledgement:
    """What a rank did about a request: stopped after ``step`` steps, its checkpoint at ``checkpoint``.

    With ``saving`` it has stopped, and is still writing the checkpoint.
    """

    request_id: str
    step: int
    checkpoint: str | None
    time_ns: int
    saving: bool = False


def request_stop(run_dir: Path, reason: str, by: str) -> str:
    """Ask the job to stop; returns the request's id. A newer request replaces an older one."""
    request = {"id": uuid.uuid4().hex, "reason": reason, "by": by, "time_ns": time.time_ns()}
    folder = run_dir / "control"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "stop.json", request)
    return str(request["id"])


def read_request(run_dir: Path) -> StopRequest | None:
    """The latest request, or None."""
    content = read_json(run_dir / "control" / "stop.json")
    if not content:
        return None
    return StopRequest(
        str(content.get("id")),
        str(content.get("reason", "")),
        str(content.get("by", "")),
        int(content.get("time_ns", 0)),
    )


def acknowledge(
    run_dir: Path, rank: int, request_id: str, *, step: int, checkpoint: str | None, saving: bool = False
) -> None:
    """Say that this rank has stopped, or has stopped and is saving its checkpoint."""
    content = asdict(Acknowledgement(request_id, step, checkpoint, time.time_ns(), saving))
    write_json(run_dir / "control" / f"stopped-rank={rank:05d}.json", content)


def read_acknowledgement(run_dir: Path, rank: int) -> Acknowledgement | None:
    """What the rank answered last, or None."""
    content = read_json(run_dir / "control" / f"stopped-rank={rank:05d}.json")
    if not content:
        return None
    return Acknowledgement(
        str(content.get("request_id")),
        int(content.get("step", 0)),
        content.get("checkpoint"),
        int(content.get("time_ns", 0)),
        bool(content.get("saving")),
    )


@dataclass(frozen=True)
class Agreement:
    """The step after which every rank stops, because of a request."""

    request_id: str
    reason: str
    step: int
    time_ns: int


def agree(run_dir: Path, request: StopRequest, step: int) -> Agreement:
    """Say, as rank 0, that all ranks stop when they have done this many steps."""
    agreement = Agreement(request.id, request.reason, step, time.time_ns())
    write_json(run_dir / "control" / "agreed.json", asdict(agreement))
    return agreement


def read_agreement(run_dir: Path) -> Agreement | None:
    """What was agreed last, or None."""
    content = read_json(run_dir / "control" / "agreed.json")
    if not content:
        return None
    return Agreement(
        str(content.get("request_id")),
        str(content.get("reason", "")),
        int(content.get("step", 0)),
        int(content.get("time_ns", 0)),
    )


def confirm(run_dir: Path, rank: int, request_id: str) -> None:
    """Say that this rank knows of a request, and looks at every step for what is agreed."""
    write_json(_confirmation(run_dir, rank), {"request_id": request_id})


def confirmed(run_dir: Path, rank: int, request_id: str) -> bool:
    """Whether it has said so."""
    content = read_json(_confirmation(run_dir, rank))
    return bool(content) and content.get("request_id") == request_id


def _confirmation(run_dir: Path, rank: int) -> Path:
    return run_dir / "control" / f"heard-rank={rank:05d}.json"


@dataclass(frozen=True)
class SavePlan:
    """Which training steps all ranks save.

    Attributes:
        interval: multiples of it.
        from_step: the step from which on this holds.
        dense: whether every step is saved for a while from there.
        time_ns: when it was published; one from before an attempt was meant for the attempt before.
    """

    interval: int
    from_step: int = 0
    dense: bool = False
    time_ns: int = 0


def publish_plan(run_dir: Path, plan: SavePlan) -> None:
    """Say, as rank 0, which steps are saved from a coming step on."""
    write_json(run_dir / "control" / "save-plan.json", asdict(plan))


def read_plan(run_dir: Path) -> SavePlan | None:
    """The plan published last, or None."""
    content = read_json(run_dir / "control" / "save-plan.json")
    if not content:
        return None
    interval, from_step = max(1, int(content.get("interval", 1))), int(content.get("from_step", 0))
    return SavePlan(interval, from_step, bool(content.get("dense")), int(content.get("time_ns", 0)))


class ChangingFile:
    """A file that others replace; cheap enough to be asked about several times a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None

    def changed(self) -> bool:
        """Whether there is another one than when it was last asked."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        before, self._stamp = self._stamp, (status.st_mtime_ns, status.st_ino)
        return self._stamp != before


def ask_for_recent(run_dir: Path) -> None:
    """Ask every rank to write what it kept back of the last steps: something was found from outside."""
    write_json(run_dir / "control" / "recent.json", {"time_ns": time.time_ns()})


class RecentWatcher:
    """Looks for requests for the last steps; one that is there when it is created was meant for an earlier attempt."""

    def __init__(self, run_dir: Path) -> None:
        self._file = ChangingFile(run_dir / "control" / "recent.json")
        self._file.changed()

    def asked(self) -> bool:
        """Whether there is a new request."""
        return self._file.changed()


class StopWatcher:
    """Looks for requests made since it was created, by whatever clock."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._file = ChangingFile(run_dir / "control" / "stop.json")
        before = read_request(run_dir)
        self._before = before.id if before is not None else None

    def poll(self) -> StopRequest | None:
        """A request that has not been returned before, or None."""
        if not self._file.changed():
            return None
        request = read_request(self._run_dir)
        return request if request is not None and request.id != self._before else None
