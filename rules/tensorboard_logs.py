"""Scalars in TensorBoard's event files, read by TensorBoard's own package."""

from __future__ import annotations

from pathlib import Path

from stepwatch.probe.store.errors import TraceError
from stepwatch.rules.scalar_logs import Point


def read_events(path: Path) -> list[Point]:
    """Scalars in an event file, or in all below a directory, where a tag is preceded by its file's folder.

    Raises:
        TraceError: a directory without event files.
        ImportError: the package tensorboard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util.tensor_util import make_ndarray
    except ModuleNotFoundError:
        raise ImportError("event files need tensorboard: pip install 'stepwatch[tensorboard]'") from None
    files = sorted(path.rglob("*.tfevents.*")) if path.is_dir() else [path]
    if not files:
        raise TraceError(f"{path}: is a directory without event files (*.tfevents.*)")
    points = []
    for file in files:
        folder = file.parent.relative_to(path).as_posix() if path.is_dir() else "."
        prefix = "" if folder == "." else f"{folder}/"
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = float(make_ndarray(value.tensor).item())
                    points.append(Point(int(event.step), "TRAIN", f"{prefix}{value.tag}", number))
    return points
