"""Profiles Python between phases of steps, with cProfile or pyinstrument, into files that smdebug's analysis reads."""

from __future__ import annotations

import cProfile
import enum
import importlib
import os
import pstats
import time
from pathlib import Path
from typing import Any

from stepwatch.probe.smdebug.errors import SMDebugError
from stepwatch.probe.smdebug.places import CONVERT_TO_MICROSECS, TraceFileLocation

CPROFILE_STATS_FILENAME = "python_stats"
PYINSTRUMENT_JSON_FILENAME = "python_stats.json"
PYINSTRUMENT_HTML_FILENAME = "python_stats.html"
PYTHON_PROFILING_START_STEP_DEFAULT = 9


class PythonProfileModes(enum.IntEnum):
    """Modes of steps, and what is before and after all of them."""

    TRAIN = 1
    EVAL = 2
    PREDICT = 3
    GLOBAL = 4
    PRE_STEP_ZERO = 5
    POST_HOOK_CLOSE = 6


class StepPhase(enum.Enum):
    """Where a profile begins or ends."""

    START = "start"
    STEP_START = "stepstart"
    FORWARD_PASS_END = "forwardpassend"
    STEP_END = "stepend"
    END = "end"


class PythonProfilerName(enum.Enum):
    """Profilers."""

    CPROFILE = "cprofile"
    PYINSTRUMENT = "pyinstrument"


class cProfileTimer(enum.Enum):
    """Clocks of cProfile; the default takes the three others in turn from step 9 on."""

    TOTAL_TIME = "total_time"
    CPU_TIME = "cpu_time"
    OFF_CPU_TIME = "off_cpu_time"
    DEFAULT = "default"


def total_time() -> float:
    """Seconds since some time."""
    return os.times().elapsed


def cpu_time() -> float:
    """Seconds that this process has computed."""
    times = os.times()
    return times.system + times.user


def off_cpu_time() -> float:
    """Seconds that it has not."""
    return total_time() - cpu_time()


_TIMERS = {
    cProfileTimer.TOTAL_TIME: total_time,
    cProfileTimer.CPU_TIME: cpu_time,
    cProfileTimer.OFF_CPU_TIME: off_cpu_time,
}


def python_profile_mode_to_str(mode: PythonProfileModes) -> str:
    """A mode as names of folders spell it."""
    return PythonProfileModes(mode).name.lower().replace("_", "")


def str_to_python_profile_mode(mode_str: str) -> PythonProfileModes:
    """Inverse of :func:`python_profile_mode_to_str`.

    Raises:
        ValueError: there is no such mode.
    """
    for mode in PythonProfileModes:
        if python_profile_mode_to_str(mode) == mode_str:
            return mode
    raise ValueError(
        f"mode is {mode_str!r}; expected one of {', '.join(map(python_profile_mode_to_str, PythonProfileModes))}"
    )


def mode_keys_to_python_profile_mode(mode: Any) -> PythonProfileModes:
    """The mode of a step."""
    return PythonProfileModes(mode.value)


class PythonProfiler:
    """Profiles from one phase to another, and writes what it found in a folder that says which.

    Args:
        base_folder: the profiler's folder.
        framework: the framework of the job: a member of ``FRAMEWORK``, or its name.
    """

    _name = ""

    def __init__(self, base_folder: str, framework: Any) -> None:
        self._base_folder = base_folder
        self._framework = str(getattr(framework, "value", framework))
        self._reset_profiler()

    def _reset_profiler(self) -> None:
        self._start_mode: PythonProfileModes | None = None
        self._start_step: int | str | None = None
        self._start_phase: StepPhase | None = None
        self._start_time_since_epoch_in_micros = 0.0
        self._is_profiling = False

    def start_profiling(
        self,
        start_phase: StepPhase,
        start_mode: PythonProfileModes = PythonProfileModes.PRE_STEP_ZERO,
        start_step: int | str = "*",
    ) -> None:
        """Begin; step ``*`` is before the first."""
        self._start_mode, self._start_step, self._start_phase = start_mode, start_step, start_phase
        self._start_time_since_epoch_in_micros = time.time() * CONVERT_TO_MICROSECS
        self._is_profiling = True
        self._enable_profiler()

    def stop_profiling(
        self,
        end_phase: StepPhase,
        end_mode: PythonProfileModes = PythonProfileModes.POST_HOOK_CLOSE,
        end_step: int | str = "*",
    ) -> None:
        """End, and write; nothing where it was not begun. Step ``*`` is after the last."""
        if not self._is_profiling:
            return
        assert self._start_mode is not None and self._start_phase is not None
        self._disable_profiler()
        folder = TraceFileLocation.get_python_profiling_stats_dir(
            self._base_folder,
            self._name,
            self._framework,
            python_profile_mode_to_str(self._start_mode),
            self._start_step,
            self._start_phase.value,
            self._start_time_since_epoch_in_micros,
            python_profile_mode_to_str(end_mode),
            end_step,
            end_phase.value,
            time.time() * CONVERT_TO_MICROSECS,
        )
        self._dump_stats(Path(folder))
        self._reset_profiler()

    def _enable_profiler(self) -> None:
        raise NotImplementedError

    def _disable_profiler(self) -> None:
        raise NotImplementedError

    def _dump_stats(self, folder: Path) -> None:
        raise NotImplementedError

    @staticmethod
    def get_python_profiler(profiler_config: Any, framework: Any) -> PythonProfiler:
        """The profiler that a configuration names.

        Raises:
            SMDebugError: it is not installed.
        """
        wanted, folder = profiler_config.python_profiling_config, profiler_config.local_path
        if wanted.profiler_name == PythonProfilerName.PYINSTRUMENT.value:
            return PyinstrumentPythonProfiler(folder, framework)
        if wanted.cprofile_timer is cProfileTimer.DEFAULT:
            return cProfileDefaultPythonProfiler(folder, framework)
        return cProfilePythonProfiler(folder, framework, wanted.cprofile_timer)


class cProfilePythonProfiler(PythonProfiler):
    """Profiles with cProfile.

    Args:
        base_folder, framework: as for any.
        cprofile_timer: its clock.
    """

    _name = PythonProfilerName.CPROFILE.value

    def __init__(
        self, base_folder: str, framework: Any, cprofile_timer: cProfileTimer = cProfileTimer.TOTAL_TIME
    ) -> None:
        super().__init__(base_folder, framework)
        self.cprofile_timer = _TIMERS.get(cProfileTimer(cprofile_timer), total_time)
        self._profile: cProfile.Profile | None = None

    def _enable_profiler(self) -> None:
        self._profile = cProfile.Profile(self.cprofile_timer)
        self._profile.enable()

    def _disable_profiler(self) -> None:
        assert self._profile is not None
        self._profile.disable()

    def _dump_stats(self, folder: Path) -> None:
        pstats.Stats(self._profile).dump_stats(folder / CPROFILE_STATS_FILENAME)


class cProfileDefaultPythonProfiler(cProfilePythonProfiler):
    """The same with its clocks in turn, from step 9 on."""

    def __init__(self, base_folder: str, framework: Any) -> None:
        super().__init__(base_folder, framework, cProfileTimer.DEFAULT)

    def _enable_profiler(self) -> None:
        turn = self._start_step - PYTHON_PROFILING_START_STEP_DEFAULT if isinstance(self._start_step, int) else 0
        self.cprofile_timer = list(_TIMERS.values())[turn if 0 <= turn < len(_TIMERS) else 0]
        super()._enable_profiler()


class PyinstrumentPythonProfiler(PythonProfiler):
    """Profiles with pyinstrument.

    Raises:
        SMDebugError: it is not installed.
    """

    _name = PythonProfilerName.PYINSTRUMENT.value

    def __init__(self, base_folder: str, framework: Any) -> None:
        super().__init__(base_folder, framework)
        try:
            self._profiler_type = importlib.import_module("pyinstrument").Profiler
        except ModuleNotFoundError:
            missing = "ProfilerName is pyinstrument, which is not installed: pip install pyinstrument"
            raise SMDebugError(missing) from None
        self._renderer = importlib.import_module("pyinstrument.renderers").JSONRenderer
        self._profile: Any = None

    def _enable_profiler(self) -> None:
        self._profile = self._profiler_type()
        self._profile.start()

    def _disable_profiler(self) -> None:
        self._profile.stop()

    def _dump_stats(self, folder: Path) -> None:
        session = self._profile.last_session
        (folder / PYINSTRUMENT_JSON_FILENAME).write_text(self._renderer().render(session), encoding="utf-8")
        (folder / PYINSTRUMENT_HTML_FILENAME).write_text(self._profile.output_html(), encoding="utf-8")
