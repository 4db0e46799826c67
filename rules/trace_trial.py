"""A run's directory as a trial: queries answered from its tables, while it grows and afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.store.attempts import Attempts
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.bulk import Series, whole_tensors
from stepwatch.rules.recorded import Recorded
from stepwatch.rules.replay import StepStream
from stepwatch.rules.step import Step
from stepwatch.rules.tensor import Array, Tensor
from stepwatch.rules.trial import Range, Trial
from stepwatch.rules.values import WholeTensors

if TYPE_CHECKING:
    import pandas as pd
    import polars


class TraceTrial(Trial):
    """A trial of a run's directory, finished or growing.

    Args:
        trace: the run.
        name: its name.
        range_steps: (first, end): only global steps in [first, end); None on a side leaves it open.

    Raises:
        ValueError: a range that holds nothing.
    """

    _statistics = True

    def __init__(self, trace: Trace, name: str, range_steps: Range | None = None) -> None:
        super().__init__(name)
        self.path = str(trace.path)
        self._first, self._end = range_steps or (None, None)
        if self._first is not None and self._end is not None and self._first >= self._end:
            raise ValueError(f"range_steps is {range_steps}; expected the first step below the end")
        self.trace = trace
        self._streams: dict[int, tuple[StepStream, Attempts]] = {}
        self._whole: dict[int, WholeTensors] = {}
        self._series: dict[ModeKeys, dict[str, Series]] = {}
        self._by_step: dict[tuple[str, ModeKeys], dict[int, Array]] = {}
        self._complete = self._unread = False

    def refresh(self) -> None:
        """Take what was recorded meanwhile; every query does."""
        if self._complete or not self.dynamic_refresh:
            return
        self.trace.refresh()
        ended = not self.trace.live()
        if ended and not self._streams:
            self._complete = self._unread = True  # nothing more will come: its steps are read when one is asked for
            return
        self._read(to_the_end=ended)
        self._complete = ended

    def _read(self, *, to_the_end: bool) -> None:
        for rank in self.trace.ranks:
            attempts = self.trace.attempts(rank)
            if rank not in self._streams or self._streams[rank][1] != attempts:
                self._recorded.forget(rank)
                self._streams[rank] = (StepStream(self.trace, rank, statistics=self._statistics), attempts)
                self._whole.pop(rank, None)
            stream, _ = self._streams[rank]
            self._take(stream.poll())
            if to_the_end:
                self._take(stream.drain())

    @property
    def recorded(self) -> Recorded:
        """The steps."""
        if self._unread:
            self._unread = False
            self._read(to_the_end=True)
        return self._recorded

    @recorded.setter
    def recorded(self, steps: Recorded) -> None:
        self._recorded = steps

    def has_tensor(self, name: str) -> bool:
        """Whether a tensor of that name was recorded."""
        self.refresh()
        known = self._known_names()
        return super().has_tensor(name) if known is None else name in known

    def _names(self, step: int | None, mode: ModeKeys) -> set[str]:
        known = self._known_names() if step is None and mode is ModeKeys.GLOBAL else None
        return super()._names(step, mode) if known is None else known

    def _known_names(self) -> set[str] | None:
        """Names of all that was recorded, as long as no step was asked for, and where the tables alone tell."""
        return None

    def _take(self, steps: Iterable[Step]) -> None:
        for step in steps:
            after_end = self._end is not None and step.step >= self._end
            if not after_end and (self._first is None or step.step >= self._first):
                self._recorded.add(step)

    @property
    def loaded_all_steps(self) -> bool:
        """Whether the job has ended, or was killed, and all was read."""
        self.refresh()
        return self._complete

    def table(self, name: str, **filters: Any) -> pa.Table:
        """Rows of a table of the run; arguments as for :meth:`stepwatch.probe.store.reader.Trace.table`."""
        return self.trace.table(name, **{"steps": (self._first, self._end), **filters})

    def frame(self, name: str, **filters: Any) -> pd.DataFrame:
        """The same for pandas, columns of text as categories; of the rest no second copy is kept."""
        rows = self.table(name, **filters)
        frame: pd.DataFrame = rows.to_pandas(strings_to_categorical=True, split_blocks=True, self_destruct=True)
        return frame

    def polars(self, name: str, **filters: Any) -> polars.DataFrame:
        """The same for polars, which takes over Arrow's memory as it is.

        Raises:
            ImportError: polars is not installed.
        """
        import polars

        frame: polars.DataFrame = polars.from_arrow(self.table(name, **filters))
        return frame

    def _repr_html_(self) -> str:
        from stepwatch.rules.notebook import run_html

        return run_html(self.trace)

    def read_series(self, name: str, mode: ModeKeys, worker: str | None) -> Series | None:
        """A tensor over all steps of a mode; of a finished job of one rank whose tensors have room in memory."""
        if not self._complete or len(self.trace.ranks) != 1 or worker not in (None, self.worker(self.trace.ranks[0])):
            return None
        if mode not in self._series:
            if not WholeTensors.fit(self.trace, self.trace.ranks[0]):
                return None
            self._series[mode] = self._whole_tensors(mode)
        return self._series[mode].get(name)

    def arrays(self, mode: ModeKeys = ModeKeys.GLOBAL, worker: str | None = None) -> dict[str, Series]:
        """Everything that was recorded whole, by name; of a single rank read at once, without opening a step."""
        if len(self.trace.ranks) != 1 or worker not in (None, self.worker(self.trace.ranks[0])):
            return super().arrays(mode, worker)
        return {**self._whole_tensors(mode), **self._scalar_series(mode, worker)}

    def _whole_tensors(self, mode: ModeKeys) -> dict[str, Series]:
        return whole_tensors(self.trace, self.trace.ranks[0], mode, (self._first, self._end))

    def _scalar_series(self, mode: ModeKeys, worker: str | None) -> dict[str, Series]:
        names = self.trace.table("scalars", columns=["name"])["name"].unique().to_pylist()
        by_name = {name: Tensor(name, self).values(mode, worker) for name in names}
        return {name: Series.of(by_step) for name, by_step in by_name.items() if by_step}

    def whole(self, name: str, step: Step) -> Array | None:
        """The whole tensor at a step, where it was saved; held in memory where all of them have room there."""
        mode = ModeKeys[step.mode]
        if (by_step := self._by_step.get((name, mode))) is not None:
            return by_step.get(step.step if mode is ModeKeys.GLOBAL else step.mode_step)
        if (series := self.read_series(name, mode, None)) is not None:
            self._by_step[name, mode] = series.by_step()
            return self.whole(name, step)
        if mode in self._series:
            return None  # they hold all that there are
        key = (step.step, step.mode, step.mode_step)
        known = self._whole.get(step.rank)
        if known is None:
            if not WholeTensors.fit(self.trace, step.rank):
                return self._read_whole(name, step)
            known = self._whole[step.rank] = WholeTensors(self.trace, step.rank)
            known.refresh()
        found = known.get(name, key)
        if found is None and not self._complete:
            known.refresh()
            found = known.get(name, key)
        return found

    def _read_whole(self, name: str, step: Step) -> Array | None:
        rows = self.trace.table(
            "values",
            columns=["mode_step", "dtype", "shape", "data"],
            ranks=[step.rank],
            steps=(step.step, step.step + 1),
            modes=[step.mode],
            names=[name],
        )
        for row in reversed(rows.to_pylist()):
            if row["mode_step"] == step.mode_step:
                return np.frombuffer(row["data"], dtype=np.dtype(row["dtype"])).reshape(row["shape"])
        return None
