"""Profiles of Python that smdebug's profiler wrote: found by steps, times or modes, and summed up.

A profile of cProfile is unmarshalled, which builds numbers, texts and containers and runs nothing of the file's.
"""

from __future__ import annotations

import enum
import json
import pstats
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwatch.probe.smdebug.errors import SMDebugValueError
from stepwatch.probe.smdebug.python_profiler import (
    CPROFILE_STATS_FILENAME,
    PYINSTRUMENT_HTML_FILENAME,
    PYINSTRUMENT_JSON_FILENAME,
    PythonProfileModes,
    PythonProfilerName,
    StepPhase,
    python_profile_mode_to_str,
    str_to_python_profile_mode,
)
from stepwatch.probe.store.remote import local_copy

if TYPE_CHECKING:
    import pandas as pd

_PROFILERS = {
    CPROFILE_STATS_FILENAME: PythonProfilerName.CPROFILE.value,
    PYINSTRUMENT_JSON_FILENAME: PythonProfilerName.PYINSTRUMENT.value,
    PYINSTRUMENT_HTML_FILENAME: PythonProfilerName.PYINSTRUMENT.value,
}
_LATE = (StepPhase.STEP_END, StepPhase.FORWARD_PASS_END)


class Metrics(enum.Enum):
    """What functions are sorted by."""

    TOTAL_TIME = "tottime"
    CUMULATIVE_TIME = "cumtime"
    PRIMITIVE_CALLS = "pcalls"
    TOTAL_CALLS = "ncalls"


class StepPythonProfileStats:
    """A file of a profile, and what its folder's name says of it.

    Attributes:
        start_mode, start_step, start_phase, start_time_since_epoch_in_micros: where it begins; step -1 is before all.
        end_mode, end_step, end_phase, end_time_since_epoch_in_micros: where it ends; an infinite step is after all.
        stats_path: the file.

    Raises:
        SMDebugValueError: the name says something else.
    """

    def __init__(self, framework: str, profiler_name: str, node_id: str, stats_dir: str, stats_path: str) -> None:
        self.profiler_name, self.framework, self.node_id = profiler_name, framework, node_id
        try:
            began, ended = stats_dir.split("_")
            mode, step, phase, time = began.split("-")
            self.start_mode = str_to_python_profile_mode(mode)
            self.start_step = -1 if step == "*" else int(step)
            self.start_phase = StepPhase(phase)
            self.start_time_since_epoch_in_micros = float(time)
            mode, step, phase, time = ended.split("-")
            self.end_mode = str_to_python_profile_mode(mode)
            self.end_step = float("inf") if step == "*" else int(step)
            self.end_phase = StepPhase(phase)
            self.end_time_since_epoch_in_micros = float(time)
        except ValueError as error:
            raise SMDebugValueError(
                f"{stats_dir}: expected MODE-STEP-PHASE-TIME_MODE-STEP-PHASE-TIME: {error}"
            ) from None
        self.stats_path = stats_path

    def has_start_and_end_mode(self, start_mode: PythonProfileModes, end_mode: PythonProfileModes) -> bool:
        """Whether it begins and ends in these modes."""
        return (self.start_mode, self.end_mode) == (start_mode, end_mode)

    def in_time_interval(self, start_time_since_epoch_in_micros: float, end_time_since_epoch_in_micros: float) -> bool:
        """Whether it begins or ends between two times."""
        ends = self.start_time_since_epoch_in_micros, self.end_time_since_epoch_in_micros
        return any(start_time_since_epoch_in_micros <= end <= end_time_since_epoch_in_micros for end in ends)

    def in_step_interval(self, start_step: int, end_step: int, start_phase: StepPhase, end_phase: StepPhase) -> bool:
        """Whether it lies between two phases of two steps."""
        if start_step > self.start_step or end_step < self.end_step:
            return False
        late = start_step == self.start_step and start_phase in _LATE and start_phase is not self.start_phase
        early = end_step == self.end_step and end_phase is StepPhase.STEP_START and end_phase is not self.end_phase
        return not late and not early

    def has_pre_step_zero_profile_stats(self) -> bool:
        """Whether it is of what was before the first step."""
        return self.start_phase is StepPhase.START

    def has_post_hook_close_profile_stats(self) -> bool:
        """Whether it is of what was after the hook was closed."""
        return self.end_phase is StepPhase.END

    def has_node_id(self, node_id: str) -> bool:
        """Whether it is of that node."""
        return self.node_id == node_id

    def __repr__(self) -> str:
        return repr(vars(self))


class cProfileFunctionStats:
    """A function in a profile of cProfile; times in seconds."""

    def __init__(self, key: tuple[str, int, str], value: tuple[int, int, float, float, dict[Any, Any]]) -> None:
        self.function_name = _function(key)
        self.prim_calls, self.total_calls, self.total_time, self.cumulative_time, callers = value
        self.callers = [_function(caller) for caller in callers]

    def __repr__(self) -> str:
        return repr(
            {
                "function name": self.function_name,
                "# of primitive calls": self.prim_calls,
                "# of total calls": self.total_calls,
                "total time": self.total_time,
                "cumulative time": self.cumulative_time,
            }
        )


class cProfileStats:
    """Profiles of cProfile, summed up.

    Attributes:
        ps: as Python's own module has them.
        function_stats_list: the functions.
    """

    def __init__(self, ps: pstats.Stats) -> None:
        self.ps = ps
        entries: dict[Any, Any] = ps.stats  # type: ignore[attr-defined]
        self.function_stats_list = [cProfileFunctionStats(key, value) for key, value in entries.items()]

    def print_top_n_functions(self, by: Metrics, n: int = 10) -> None:
        """Print the first functions by some measure."""
        self.ps.sort_stats(by.value).print_stats(n)

    def get_function_stats(self) -> pd.DataFrame:
        """The functions, a row each."""
        import pandas as pd

        return pd.DataFrame([vars(function) for function in self.function_stats_list])


class PyinstrumentStepStats:
    """A profile of pyinstrument: its page, and what its JSON holds."""

    def __init__(self, html_file_path: str, json_stats: dict[str, Any]) -> None:
        self.html_file_path, self.json_stats = html_file_path, json_stats


class LocalPythonStatsReader:
    """Finds profiles in a directory: ``NODE/PROFILE/FILE``.

    Raises:
        AssertionError: there is no such directory.
    """

    def __init__(self, profile_dir: str) -> None:
        if not Path(profile_dir).is_dir():
            raise AssertionError(f"{profile_dir}: no such directory; expected one with profiles of Python")
        self.profile_dir = profile_dir

    def load_python_profile_stats(self) -> list[StepPythonProfileStats]:
        """The files by when they begin, and then by node."""
        root = Path(self.profile_dir)
        found = [_stats(file, root.parent.name) for file in root.glob("*/*/*") if file.name in _PROFILERS]
        return sorted(found, key=lambda stats: (stats.start_time_since_epoch_in_micros, stats.node_id))


class S3PythonStatsReader:
    """The same below ``framework`` of a prefix in S3, of which a local copy is kept up to date.

    Args:
        profile_dir: not used: copies lie where those of all stores do.
        s3_path: ``s3://bucket/prefix``.
    """

    def __init__(self, profile_dir: str, s3_path: str) -> None:
        if not s3_path.startswith("s3://"):
            raise AssertionError(f"s3_path is {s3_path!r}; expected s3://bucket/prefix")
        self.profile_dir, self._url = profile_dir, s3_path

    def load_python_profile_stats(self) -> list[StepPythonProfileStats]:
        """The files by when they begin, and then by node."""
        files = (local_copy(self._url) / "framework").glob("*/*/*/*/*")
        found = [_stats(file, file.parts[-5]) for file in files if file.name in _PROFILERS]
        return sorted(found, key=lambda stats: (stats.start_time_since_epoch_in_micros, stats.node_id))


class PythonProfileAnalysis:
    """Profiles of one profiler.

    Args:
        local_profile_dir: their directory.
        s3_path: ``s3://bucket/prefix`` of the profiler's output, instead.

    Attributes:
        python_profile_stats: the files.
    """

    name = ""

    def __init__(self, local_profile_dir: str = "/tmp/python_stats", s3_path: str | None = None) -> None:
        local = LocalPythonStatsReader
        self.python_stats_reader = (
            S3PythonStatsReader(local_profile_dir, s3_path) if s3_path else local(local_profile_dir)
        )
        self.python_profile_stats: list[StepPythonProfileStats] = []
        self._refresh(True)

    def _refresh(self, wanted: bool) -> None:
        if wanted:
            every = self.python_stats_reader.load_python_profile_stats()
            self.python_profile_stats = [stats for stats in every if self.name in ("", stats.profiler_name)]

    def _fetch(self, node_id: str, refresh: bool, wanted: Callable[[StepPythonProfileStats], bool]) -> Any:
        self._refresh(refresh)
        if node_id == "any" and self.python_profile_stats:
            node_id = self.python_profile_stats[0].node_id
        return self._summed([each for each in self.python_profile_stats if each.node_id == node_id and wanted(each)])

    def _summed(self, found: list[StepPythonProfileStats]) -> Any:
        return found

    def fetch_profile_stats_by_step(
        self,
        start_step: int,
        end_step: int | None = None,
        mode: PythonProfileModes = PythonProfileModes.TRAIN,
        start_phase: StepPhase = StepPhase.STEP_START,
        end_phase: StepPhase = StepPhase.STEP_END,
        node_id: str = "any",
        refresh_stats: bool = True,
    ) -> Any:
        """Of phases between two steps of a mode; of one step by default."""
        end = start_step if end_step is None else end_step

        def wanted(stats: StepPythonProfileStats) -> bool:
            within = stats.in_step_interval(start_step, end, start_phase, end_phase)
            return within and stats.has_start_and_end_mode(mode, mode)

        return self._fetch(node_id, refresh_stats, wanted)

    def fetch_profile_stats_by_time(
        self,
        start_time_since_epoch_in_secs: float,
        end_time_since_epoch_in_secs: float,
        node_id: str = "any",
        refresh_stats: bool = True,
    ) -> Any:
        """Between two times in seconds since the epoch."""
        first, last = start_time_since_epoch_in_secs * 1e6, end_time_since_epoch_in_secs * 1e6
        return self._fetch(node_id, refresh_stats, lambda stats: stats.in_time_interval(first, last))

    def fetch_profile_stats_between_modes(
        self,
        start_mode: PythonProfileModes,
        end_mode: PythonProfileModes,
        node_id: str = "any",
        refresh_stats: bool = True,
    ) -> Any:
        """From one mode to another."""
        return self._fetch(node_id, refresh_stats, lambda stats: stats.has_start_and_end_mode(start_mode, end_mode))

    def fetch_pre_step_zero_profile_stats(self, node_id: str = "any", refresh_stats: bool = True) -> Any:
        """Of what was before the first step."""
        return self._fetch(node_id, refresh_stats, StepPythonProfileStats.has_pre_step_zero_profile_stats)

    def fetch_post_hook_close_profile_stats(self, node_id: str = "any", refresh_stats: bool = True) -> Any:
        """Of what was after the hook was closed."""
        return self._fetch(node_id, refresh_stats, StepPythonProfileStats.has_post_hook_close_profile_stats)

    def list_profile_stats(self, refresh_stats: bool = True) -> pd.DataFrame:
        """The files, a row each."""
        import pandas as pd

        self._refresh(refresh_stats)
        frame = pd.DataFrame([vars(stats) for stats in self.python_profile_stats])
        for column in ("start_mode", "end_mode") if len(frame) else ():
            frame[column] = frame[column].map(python_profile_mode_to_str)
        return frame

    def list_available_node_ids(self, refresh_stats: bool = True) -> list[str]:
        """Nodes that have profiles."""
        self._refresh(refresh_stats)
        return sorted({stats.node_id for stats in self.python_profile_stats})


class cProfileAnalysis(PythonProfileAnalysis):
    """Profiles of cProfile; those that are found together are summed up, and None where there are none."""

    name = PythonProfilerName.CPROFILE.value

    def _summed(self, found: list[StepPythonProfileStats]) -> cProfileStats | None:
        if not found:
            return None
        summed = pstats.Stats()
        summed.add(*(stats.stats_path for stats in found))
        return cProfileStats(summed)

    def fetch_profile_stats_by_training_phase(
        self, node_id: str = "any", refresh_stats: bool = True
    ) -> dict[tuple[PythonProfileModes, PythonProfileModes], cProfileStats]:
        """By the modes in which they begin and end."""
        self._refresh(refresh_stats)
        pairs = [(first, last) for first in PythonProfileModes for last in PythonProfileModes]
        every = {pair: self.fetch_profile_stats_between_modes(*pair, node_id, False) for pair in pairs}
        return {pair: stats for pair, stats in every.items() if stats is not None}

    def fetch_profile_stats_by_job_phase(
        self, node_id: str = "any", refresh_stats: bool = True
    ) -> dict[str, cProfileStats]:
        """``initialization`` before the first step, ``training_loop``, ``finalization`` after the hook was closed."""
        found: dict[str, cProfileStats] = {}
        loop = pstats.Stats()
        for (first, last), stats in self.fetch_profile_stats_by_training_phase(node_id, refresh_stats).items():
            if first is PythonProfileModes.PRE_STEP_ZERO:
                found["initialization"] = stats
            elif last is PythonProfileModes.POST_HOOK_CLOSE:
                found["finalization"] = stats
            else:
                loop.add(stats.ps)
        return {**found, "training_loop": cProfileStats(loop)}


class PyinstrumentAnalysis(PythonProfileAnalysis):
    """Profiles of pyinstrument; None where there are none."""

    name = PythonProfilerName.PYINSTRUMENT.value

    def _summed(self, found: list[StepPythonProfileStats]) -> list[PyinstrumentStepStats] | None:
        folders = dict.fromkeys(Path(stats.stats_path).parent for stats in found)
        read = []
        for folder in folders:
            content = json.loads((folder / PYINSTRUMENT_JSON_FILENAME).read_text(encoding="utf-8"))
            read.append(PyinstrumentStepStats(str(folder / PYINSTRUMENT_HTML_FILENAME), content))
        return read or None


def _stats(file: Path, framework: str) -> StepPythonProfileStats:
    folder = file.parent
    return StepPythonProfileStats(framework, _PROFILERS[file.name], folder.parent.name, folder.name, str(file))


def _function(key: tuple[str, int, str]) -> str:
    return str(pstats.func_std_string(key))  # type: ignore[attr-defined]
