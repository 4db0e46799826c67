"""How smdebug opens trials: its arguments, those that mean nothing here among them."""

from __future__ import annotations

from typing import Any

from stepwatch.rules import trial
from stepwatch.rules.smdebug.profiler_trial import ProfilerTrial
from stepwatch.rules.trial import Range, Trial

_MEANINGLESS = {"check", "index_mode", "cache", "parallel"}


def create_trial(
    path: str,
    name: str | None = None,
    profiler: bool = False,
    output_dir: str = "/opt/ml/processing/outputs/",
    range_steps: Range | None = None,
    **options: Any,
) -> Trial | ProfilerTrial:
    """Open a run, or what smdebug recorded, for queries.

    Args:
        path: the directory, or ``s3://bucket/prefix``.
        name: name of the trial; the directory's by default.
        profiler: whether it is what SageMaker's profiler wrote.
        output_dir: where rules about that write their reports.
        range_steps: (first, end) global steps.
        options: ``check``, ``index_mode``, ``cache`` and ``parallel`` change nothing.

    Raises:
        TraceError: the directory cannot be read.
        AssertionError: a range that holds nothing.
        TypeError: another option.
    """
    unknown = ", ".join(sorted(set(options) - _MEANINGLESS))
    if unknown:
        raise TypeError(f"create_trial got {unknown}; expected {', '.join(sorted(_MEANINGLESS))}")
    if profiler:
        return ProfilerTrial(name or path.strip().rstrip("/").rpartition("/")[2], path.strip(), output_dir)
    first, end = range_steps or (None, None)
    if first is not None and end is not None and first >= end:
        raise AssertionError(f"range_steps is {range_steps}; expected the first step below the end")
    return trial.create_trial(path.strip(), name, range_steps)


def LocalTrial(name: str, dirname: str, range_steps: Range | None = None, **options: Any) -> Any:
    """The trial of a directory."""
    return create_trial(dirname, name, range_steps=range_steps, **options)


def S3Trial(name: str, bucket_name: str, prefix_name: str, range_steps: Range | None = None, **options: Any) -> Any:
    """The trial of a prefix in a bucket."""
    return create_trial(f"s3://{bucket_name}/{prefix_name}", name, range_steps=range_steps, **options)
