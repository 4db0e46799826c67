"""What a run says of itself: run.json, and how its ranks ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.rankfile import read_json
from stepwatch.probe.store.schema import FORMAT_VERSION


@dataclass(frozen=True)
class RunInfo:
    """run.json."""

    run_id: str
    job_name: str
    world_size: int
    host: str
    start_ns: int
    command: tuple[str, ...]
    versions: dict[str, str]
    config: dict[str, Any]
    format_version: int
    code: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EndInfo:
    """How a rank ended: "finished", "exception", "signal" or "stopped"."""

    status: str
    reason: str
    last_step: int | None
    time_ns: int
    attempt: int


def read_run_info(path: Path) -> RunInfo:
    """run.json of the run in this directory.

    Raises:
        TraceError: it is no run, or one that this version cannot read.
    """
    if not path.exists():
        raise TraceError(f"{path}: no such directory")
    if not path.is_dir():
        raise TraceError(f"{path}: is a file; expected the directory of a run")
    try:
        content = read_json(path / "run.json")
        if not content:
            what = "is empty" if not any(path.iterdir()) else "holds no run.json"
            raise TraceError(f"{path}: {what}; expected the directory of a run")
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    version = content.get("format_version")
    if not isinstance(version, int):
        raise TraceError(f"{path}/run.json: format_version is {version!r}; expected a number")
    if version > FORMAT_VERSION:
        raise TraceError(
            f"{path}: written in format version {version} by a newer Stepwatch; this one reads up to {FORMAT_VERSION}"
        )
    try:
        return RunInfo(
            run_id=str(content.get("run_id", "")),
            job_name=str(content.get("job_name", path.name)),
            world_size=int(content.get("world_size", 1)),
            host=str(content.get("host", "")),
            start_ns=int(content.get("start_ns", 0)),
            command=tuple(str(word) for word in content.get("command", ())),
            versions={str(k): str(v) for k, v in dict(content.get("versions", {})).items()},
            config=dict(content.get("config", {})),
            format_version=version,
            code={str(k): str(v) for k, v in dict(content.get("code", {})).items()},
        )
    except (TypeError, ValueError) as error:
        raise TraceError(f"{path}/run.json: {error}") from None
