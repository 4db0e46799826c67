"""Questions to tables of what SageMaker's profiler wrote: how long steps took, what the machine did meanwhile."""

from __future__ import annotations

import enum
import itertools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("stepwatch")

_STATISTICS = {"mean": "mean", "min": "min", "max": "max", "50%": "p50", "95%": "p95", "99%": "p99"}
_STEP = "Step:ModeKeys"
_RANGES = [(90, 100), (10, 90), (0, 10)]


class StatsBy(enum.Enum):
    """What durations and utilisation are grouped by."""

    TRAINING_PHASE = "training_phase"
    FRAMEWORK_METRICS = "framework_metric"
    PROCESS = "process"


class Resource(enum.Enum):
    """What samples of the machine are about."""

    CPU = "cpu"
    GPU = "gpu"
    IO = "i/o"
    NETWORK = "network"
    MEMORY = "memory"


class JobStats(dict[str, Any]):
    """Numbers of a job by their names; shown as a table."""

    def __repr__(self) -> str:
        import pandas as pd

        return repr(pd.Series(dict(self), dtype=object).to_frame(""))


class PandasFrameAnalysis:
    """Answers about the tables that :class:`PandasFrame` gives; these stay as they are.

    Args:
        system_df: samples of the machine.
        framework_df: events. One without a step is part of the first step within which it lies, if there is one.
    """

    def __init__(self, system_df: pd.DataFrame, framework_df: pd.DataFrame) -> None:
        self.sys_metrics_df = system_df.copy()
        self.framework_metrics_df = framework_df.copy()
        events = self.framework_metrics_df
        events["duration_us"] = events["end_time_us"] - events["start_time_us"]
        steps = events[events["framework_metric"].str.contains(_STEP, regex=False) & (events["step"] != -1)]
        self.step_time_df = _extents(steps, ["step"])
        events["step"] = self._step_of_each()

    def _step_of_each(self) -> list[int]:
        events, steps = self.framework_metrics_df, self.step_time_df
        numbers, starts, ends = (steps[each].to_numpy() for each in ("step", "start_time_us", "end_time_us"))
        found = []
        for step, start, end in zip(events["step"], events["start_time_us"], events["end_time_us"], strict=True):
            if step == -1:
                within = numbers[(starts < start) & (ends > end)]
                step = int(within[0]) if within.size else -1
            found.append(int(step))
        return found

    def get_job_statistics(self) -> JobStats:
        """When the job ran, and how much of it was before, in and after its steps, in microseconds and per cent.

        Raises:
            ValueError: there are no samples, or no step 0 of training.
        """
        samples, events = self.sys_metrics_df, self.framework_metrics_df
        trained = events["framework_metric"].isin([f"{_STEP}.TRAIN", f"{_STEP}.GLOBAL"])
        first = events[(events["step"] == 0) & trained]
        if samples.empty or first.empty:
            raise ValueError("the tables hold no samples of the machine, or no step 0 of training; expected both")
        began, ended = first["start_time_us"].iloc[0], events["end_time_us"].max()
        duration = samples["timestamp_us"].max() - samples["timestamp_us"].min()
        parts = {
            "initialization": began,
            "training_loop": ended - began,
            "finalization": samples["timestamp_us"].max() - ended,
        }
        found = JobStats(start_time=samples["timestamp"].min(), end_time=samples["timestamp"].max())
        found["job_duration"] = duration
        found["training_loop_start"] = first["start_time"].iloc[0]
        found["training_loop_end"] = events["end_time"].max()
        found["training_loop_duration"] = parts["training_loop"]
        found |= {name: parts[name] for name in ("initialization", "finalization")}
        found |= {f"{name}_%": 100 * part / duration for name, part in parts.items() if duration}
        return found

    def get_step_statistics(self, by: StatsBy = StatsBy.TRAINING_PHASE) -> pd.DataFrame | None:
        """How long something took in a step, from its first event to its last, in microseconds.

        Args:
            by: what it is: the step by its mode, an event by its name or by its phase.

        Returns:
            A row for each, with mean, min, max and percentiles; None where ``by`` is something else.
        """
        if not isinstance(by, StatsBy):
            log.info("by is %r; expected a StatsBy", by)
            return None
        events, column = self.framework_metrics_df, by.value
        if by is StatsBy.TRAINING_PHASE:
            events, column = events[events["framework_metric"].str.contains(_STEP, regex=False)], "framework_metric"
        extents = _extents(events, ["step", column])
        extents["duration_us"] = extents["end_time_us"] - extents["start_time_us"]
        found = _statistics(extents, [column], "duration_us")
        found.columns = [by.value, *(f"duration_{each}_us" for each in _STATISTICS.values())]
        return found

    def get_utilization_stats(
        self,
        resource: Resource | Sequence[Resource] | None = None,
        by: StatsBy | None = None,
        phase: str | Sequence[str] | None = None,
    ) -> pd.DataFrame | None:
        """How much of the machine was used, by resource and node.

        Args:
            resource: one or several; all by default.
            by: ``StatsBy.TRAINING_PHASE`` also tells the stretches of :meth:`get_training_phase_intervals` apart.
            phase: which phases these are of.

        Returns:
            A row for each, with mean, min, max and percentiles; None where an argument is something else.
        """
        import pandas as pd

        if by is not None and not isinstance(by, StatsBy):
            log.info("by is %r; expected a StatsBy", by)
            return None
        resources = _resources(resource, list(Resource))
        if resources is None:
            return None
        by_phase = by is StatsBy.TRAINING_PHASE
        samples = self.sys_metrics_df.assign(phase=None)
        if by_phase:
            intervals = self.get_training_phase_intervals(phase)
            if intervals is None:
                return None
            for start, end, name in intervals.itertuples(index=False):
                samples.loc[samples["timestamp_us"].between(start, end), "phase"] = name
        keys = ["Training_phase", "nodeID"] if by_phase else ["nodeID"]
        columns = ["Resource", *keys, *(f"utilization_{each}" for each in _STATISTICS.values())]
        parts = []
        for name in resources:
            of_it = samples[samples["type"].str.contains(name, regex=False)].rename(columns={"phase": "Training_phase"})
            of_it = of_it.dropna(subset=keys)
            if not of_it.empty:
                found = _statistics(of_it, keys, "value")
                found.insert(0, "Resource", name)
                parts.append(found.set_axis(columns, axis="columns"))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def get_device_usage_stats(
        self,
        device: Resource | Sequence[Resource] | None = None,
        utilization_ranges: Sequence[tuple[float, float]] | None = None,
    ) -> pd.DataFrame:
        """How many samples of each kind and node lie in which range, a column for each; the first range counts.

        Args:
            device: one or several resources; processors and GPUs by default.
            utilization_ranges: limits in per cent, both included; above 90, below 10 and between by default.

        Returns:
            The table; an empty one where an argument is something else.
        """
        import pandas as pd

        resources = _resources(device, [Resource.CPU, Resource.GPU])
        ranges = _RANGES if utilization_ranges is None else utilization_ranges
        if not isinstance(ranges, list) or not ranges or any(len(each) != 2 for each in ranges):
            log.info("utilization_ranges is %r; expected a list of pairs", ranges)
            return pd.DataFrame()
        if resources is None:
            return pd.DataFrame()
        samples = self.sys_metrics_df
        samples = samples[samples["type"].str.contains("|".join(resources))]
        which = [
            next((each for each in ranges if each[0] <= float(value) <= each[1]), ()) for value in samples["value"]
        ]
        samples = samples.assign(range=pd.Series(which, index=samples.index, dtype=object))
        samples = samples[samples["range"].map(bool).astype(bool)]
        found = samples.groupby(["type", "nodeID", "range"]).size().unstack(fill_value=0)
        return found.reset_index()

    def get_training_phase_intervals(self, phase: str | Sequence[str] | None = None) -> pd.DataFrame | None:
        """The stretches of the job: before training, in each phase, between phases, after it.

        Args:
            phase: names such as ``Step:ModeKeys.TRAIN``; every kind of step by default. Of several, those in a row of
                the same name are one stretch; of one, each is a stretch of its own.

        Returns:
            Start and end in microseconds and a name for each; None where there is no such phase.
        """
        import pandas as pd

        events = self.framework_metrics_df
        there = list(events["process"].unique())
        wanted = [each for each in there if _STEP in each] if phase is None else phase
        names = [each for each in ([wanted] if isinstance(wanted, str) else wanted) if each in there]
        rows = events[events["framework_metric"].isin(names)]
        if rows.empty:
            log.info(
                "phase is %r; expected some of %s", phase, ", ".join(map(str, there)) or "none: there are no events"
            )
            return None
        name = rows["framework_metric"]
        begins = name.ne(name.shift()) | (len(names) == 1)
        grouped = rows.groupby(begins.cumsum())
        stretches = [
            (part["start_time_us"].min(), part["end_time_us"].max(), part["framework_metric"].iloc[0])
            for _, part in grouped
        ]
        times = self.sys_metrics_df["timestamp_us"]
        found = [(times.min(), stretches[0][0] - 1, f"Before {stretches[0][2]}"), stretches[0]]
        for before, after in itertools.pairwise(stretches):
            found.append((before[1] + 1, after[0] - 1, f"Between {' and '.join(sorted((before[2], after[2])))}"))
            found.append(after)
        found.append((stretches[-1][1] + 1, times.max(), f"After {stretches[-1][2]}"))
        return pd.DataFrame(found, columns=["start_time_us", "end_time_us", "phase"])


def _extents(events: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """From the first start to the last end, of events of several processes."""
    return events.groupby(keys).agg({"start_time_us": "min", "end_time_us": "max"}).reset_index()


def _statistics(rows: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    described = rows.groupby(keys)[column].describe(percentiles=[0.5, 0.95, 0.99])
    return described.reindex(columns=list(_STATISTICS)).reset_index()


def _resources(wanted: Any, every: list[Resource]) -> list[str] | None:
    if isinstance(wanted, Resource):
        wanted = [wanted]
    if wanted is not None and not isinstance(wanted, list):
        log.info("resource is %r; expected a Resource or a list of them", wanted)
        return None
    return [each.value for each in wanted or every]
