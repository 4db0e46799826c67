"""Which batches and workers of PyTorch's data loaders were slow, from tables of what the profiler wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepwatch.rules.smdebug.frames import PandasFrame

if TYPE_CHECKING:
    import pandas as pd

_ITERATORS = ("_MultiProcessingDataLoaderIter.__init__", "_SingleProcessDataLoaderIter.__init__")
_OUTLIER = 2  # times the median


class PT_dataloader_analysis:
    """Prints what there is to say, and returns what lies far from the median.

    Args:
        pandas_frame: the profiler's output.
    """

    def __init__(self, pandas_frame: PandasFrame) -> None:
        self.pd_data_frame = pandas_frame
        table = pandas_frame.get_all_dataloader_metrics
        self.dataIter_metric = table([".*DataLoaderIter::GetNext"])
        self.initialize_metric = table(["DataLoaderIterInitialize"])
        self.dataWorker_metric = table(["DataLoaderWorker"])

    def analyze_dataloaderIter_initialization(self) -> None:
        """How data loaders are configured, and how long it took to make their iterators."""
        if not _any(self.initialize_metric, "the initialization of iterators"):
            return
        for kind in _ITERATORS:
            of_it = self.initialize_metric[self.initialize_metric["framework_metric"] == kind]
            if of_it.empty:
                print(f"{kind}: not used")
                continue
            first = of_it.iloc[0]
            print(f"{kind}: {len(of_it)} times, pin_memory={first['pin_memory']}, num_workers={first['num_workers']}")
            _slow(of_it, "duration_us")

    def analyze_dataloaderWorkers(self) -> pd.DataFrame | None:
        """Workers that lived long, None where none did."""
        there = _any(self.dataWorker_metric, "worker processes")
        return _slow(self.dataWorker_metric, "duration_us") if there else None

    def analyze_dataloader_getnext(self) -> pd.DataFrame | None:
        """Calls that waited long for a batch, None where none did."""
        there = _any(self.dataIter_metric, "calls of GetNext")
        return _slow(self.dataIter_metric, "duration_us") if there else None

    def analyze_batchtime(self) -> pd.DataFrame | None:
        """Batches after which the next one was long in coming, by the start of each; None where none was."""
        if not _any(self.dataIter_metric, "calls of GetNext"):
            return None
        calls = self.dataIter_metric.sort_values(by=["node_id", "pid", "end_time_us"])
        of_process = calls.groupby(["node_id", "pid"])
        calls["BatchTime_in_seconds"] = of_process["start_time_us"].diff() / 1e6
        calls["previous_batch_start"] = of_process["start_time"].shift()
        return _slow(calls, "BatchTime_in_seconds", ["previous_batch_start", "start_time"])


def _any(rows: pd.DataFrame, what: str) -> bool:
    if rows.empty:
        print(f"no events of {what} were recorded")
    return not rows.empty


def _slow(rows: pd.DataFrame, column: str, shown: Any = ("start_time", "end_time")) -> pd.DataFrame | None:
    """Rows with twice the median or more, the largest first."""
    median = rows[column].median()
    print(f"{len(rows)} events, {column}: median {median:g}, maximum {rows[column].max():g}")
    found = rows.loc[rows[column] >= _OUTLIER * median, [*shown, column, "worker_id"]]
    if found.empty:
        print("no outliers")
        return None
    print(f"{len(found)} outliers, with {_OUTLIER} times the median or more")
    return found.sort_values(by=column, ascending=False).reset_index(drop=True)
