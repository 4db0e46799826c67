"""SageMaker's configuration of its profiler: what is profiled, when, and where files go."""

from __future__ import annotations

import ast
import enum
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.errors import SMDebugError
from stepwatch.probe.smdebug.python_profiler import (
    PythonProfileModes,
    PythonProfiler,
    StepPhase,
    cProfileTimer,
)

log = logging.getLogger("stepwatch")

PATH_VARIABLE = "SMPROFILER_CONFIG_PATH"
CONFIG_PATH_DEFAULT = "/opt/ml/input/config/profilerconfig.json"
BASE_FOLDER_DEFAULT = "/opt/ml/output/profiler"
MAX_FILE_SIZE_DEFAULT = 10485760
CLOSE_FILE_INTERVAL_DEFAULT = 60
FILE_OPEN_FAIL_THRESHOLD_DEFAULT = 50
PROFILING_NUM_STEPS_DEFAULT = 1
PROFILER_DURATION_DEFAULT = float("inf")
CPROFILE_NAME, PYINSTRUMENT_NAME = "cprofile", "pyinstrument"


class RotationPolicy:
    """When a timeline goes on in a new file: after so many bytes, or so many seconds."""

    def __init__(self, file_max_size: int, file_close_interval: float) -> None:
        self.file_max_size = file_max_size
        self.file_close_interval = file_close_interval


class TraceFile:
    """The same, and how often a file may fail to open before no more events are taken."""

    def __init__(self, file_max_size: int, file_close_interval: float, file_open_fail_threshold: int) -> None:
        self.rotation_policy = RotationPolicy(file_max_size, file_close_interval)
        self.file_open_fail_threshold = file_open_fail_threshold


class ProfileRange:
    """Steps, or a time, in which something is profiled.

    Args:
        name: what is, for messages.
        profile_range: the configuration, its keys in small letters; empty where nothing is to be profiled.

    Attributes:
        start_step, num_steps, end_step: steps, the end excluded.
        start_time_in_sec, duration_in_sec, end_time: seconds since the epoch.
        error_message: what is wrong with the configuration; nothing is profiled then.
    """

    def __init__(self, name: str, profile_range: Mapping[str, Any]) -> None:
        self.name = name
        self.error_message: str | None = None
        self.disabled = not profile_range
        self.end_step: int | None = None
        self.end_time: float | None = None
        self.start_step = self.num_steps = None
        self.start_time_in_sec = self.duration_in_sec = None
        try:
            self.start_step = _number(profile_range.get("startstep"), int)
            self.num_steps = _number(profile_range.get("numsteps"), int)
            self.start_time_in_sec = _number(profile_range.get("starttimeinsecsinceepoch"), float)
            self.duration_in_sec = _number(profile_range.get("durationinseconds"), float)
        except ValueError as error:
            self._refuse(str(error))
            return
        if self.has_step_range() and self.has_time_range():
            self.error_message = f"Found step and time fields in {name} config! Disabling {name}."

    def _refuse(self, why: str) -> None:
        self.error_message = f"{why} encountered in {self.name} config. Disabling {self.name}."
        self.reset_profile_range()

    def has_step_range(self) -> bool:
        """Whether steps are said; a ``StartStep`` of 0 on its own says none, as in smdebug."""
        return bool(self.start_step or self.num_steps)

    def has_time_range(self) -> bool:
        """Whether a time is said, other than 0."""
        return bool(self.start_time_in_sec or self.duration_in_sec)

    def reset_profile_range(self) -> None:
        """Forget both."""
        self.start_step = self.num_steps = None
        self.start_time_in_sec = self.duration_in_sec = None

    def is_enabled(self) -> bool:
        """Whether there is a configuration without a mistake."""
        return not self.disabled and self.error_message is None

    def can_start_profiling(self, current_step: int | str, current_time: float | None) -> bool:
        """Whether a step, or now, is to be profiled; what the configuration leaves open begins with the first call.

        Args:
            current_step: the step; ``*`` for what is before the first and after the last.
            current_time: seconds since the epoch; now by default.
        """
        if not self.is_enabled():
            return False
        if self.has_step_range():
            return current_step == "*" or self._has_step(int(current_step))
        return self.has_time_range() and self._has_time(int(current_step), current_time or time.time())

    def _has_step(self, step: int) -> bool:
        self.start_step = step if self.start_step is None else self.start_step
        self.num_steps = PROFILING_NUM_STEPS_DEFAULT if self.num_steps is None else self.num_steps
        self.end_step = self.start_step + self.num_steps
        return self.start_step <= step < self.end_step

    def _has_time(self, step: int, now: float) -> bool:
        self.start_time_in_sec = now if self.start_time_in_sec is None else self.start_time_in_sec
        if self.duration_in_sec:
            self.end_time = self.end_time or self.start_time_in_sec + self.duration_in_sec
            return self.start_time_in_sec <= now < self.end_time
        if now < self.start_time_in_sec:
            return False
        self.end_step = step + 1 if self.end_step is None else self.end_step
        return step < self.end_step


class DetailedProfilingConfig(ProfileRange):
    """When operators are traced."""

    def __init__(self, detailed_profiling_config: Mapping[str, Any]) -> None:
        super().__init__("detailed profiling", detailed_profiling_config)


class DataloaderProfilingConfig(ProfileRange):
    """When data loaders are, and which of their events."""

    def __init__(self, dataloader_config: Mapping[str, Any]) -> None:
        super().__init__("dataloader profiling", dataloader_config)
        self.metrics_regex: re.Pattern[str] | None = None
        if self.error_message is None:
            try:
                self.metrics_regex = re.compile(str(dataloader_config.get("metricsregex", ".*")).lower())
            except re.error as error:
                self._refuse(str(error))

    def valid_metrics_name(self, metrics_name: str) -> bool:
        """Whether an event is wanted, in whatever case it is spelled."""
        return self.metrics_regex is not None and self.metrics_regex.match(metrics_name.lower()) is not None


class PythonProfilingConfig(ProfileRange):
    """When Python is profiled, by what, and by which clock."""

    def __init__(self, python_profiling_config: Mapping[str, Any]) -> None:
        super().__init__("python profiling", python_profiling_config)
        self.profiler_name: str | None = None
        self.cprofile_timer: cProfileTimer | None = None
        if self.error_message is not None:
            return
        name = str(python_profiling_config.get("profilername", CPROFILE_NAME)).lower()
        if name not in (CPROFILE_NAME, PYINSTRUMENT_NAME):
            self.error_message = f"Profiler name must be {CPROFILE_NAME} or {PYINSTRUMENT_NAME}!"
            self.reset_profile_range()
            return
        try:
            if name == CPROFILE_NAME:
                timer = str(python_profiling_config.get("cprofiletimer", cProfileTimer.TOTAL_TIME.value)).lower()
                self.cprofile_timer = cProfileTimer(timer)
            self.profiler_name = name
        except ValueError as error:
            self._refuse(str(error))


class SMDataParallelProfilingConfig(ProfileRange):
    """When SageMaker's data parallel library is traced."""

    def __init__(self, smdataparallel_profiling_config: Mapping[str, Any]) -> None:
        super().__init__("smdataparallel profiling", smdataparallel_profiling_config)


class ProfilerConfig:
    """All of it."""

    def __init__(
        self,
        local_path: str,
        file_max_size: int,
        file_close_interval: float,
        file_open_fail_threshold: int,
        detailed_profiling_config: Mapping[str, Any],
        dataloader_profiling_config: Mapping[str, Any],
        python_profiling_config: Mapping[str, Any],
        smdataparallel_profiling_config: Mapping[str, Any],
    ) -> None:
        self.local_path = local_path
        self.trace_file = TraceFile(file_max_size, file_close_interval, file_open_fail_threshold)
        self.detailed_profiling_config = DetailedProfilingConfig(detailed_profiling_config)
        self.dataloader_profiling_config = DataloaderProfilingConfig(dataloader_profiling_config)
        self.python_profiling_config = PythonProfilingConfig(python_profiling_config)
        self.smdataparallel_profiling_config = SMDataParallelProfilingConfig(smdataparallel_profiling_config)

    def ranges(self) -> tuple[ProfileRange, ...]:
        """What is profiled when, in the order of :class:`MetricsCategory`."""
        return (
            self.detailed_profiling_config,
            self.dataloader_profiling_config,
            self.python_profiling_config,
            self.smdataparallel_profiling_config,
        )


class MetricsCategory(enum.Enum):
    """Kinds of things that are profiled."""

    DETAILED_PROFILING = 1
    DATALOADER_PROFILING = 2
    PYTHON_PROFILING = 3
    SMDATAPARALLEL_PROFILING = 4


class ProfilerConfigParser:
    """Reads the file that ``SMPROFILER_CONFIG_PATH`` names, or SageMaker's, and again when it has changed.

    Keys may be spelled in any case. A file that is missing, damaged or has no ``ProfilingParameters`` disables the
    profiler; a damaged part of it disables that part. Both are said once.

    Args:
        framework: the framework of the job, a member of ``FRAMEWORK``.
    """

    def __init__(self, framework: Any = None) -> None:
        self.framework = framework
        self.last_json_config: Any = None
        self.config: ProfilerConfig | None = None
        self.profiling_enabled = False
        self._said: set[str] = set()
        self.load_config()
        self.python_profiler: PythonProfiler | None = None
        if self.config is not None and self.is_python_profiling_enabled():
            try:
                self.python_profiler = PythonProfiler.get_python_profiler(self.config, framework)
            except SMDebugError as error:
                self._say(f"{error}. Python is not profiled.", logging.ERROR)

    def load_config(self) -> None:
        """Take the file as it is now."""
        path = Path(os.environ.get(PATH_VARIABLE, CONFIG_PATH_DEFAULT))
        try:
            content = _small(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            self._disable(f"Unable to find config at {path}. Profiler is disabled.", logging.DEBUG)
            return
        except (OSError, ValueError) as error:
            self._disable(f"Error parsing config at {path}: {error}", logging.ERROR)
            return
        if content == self.last_json_config:
            return
        self.last_json_config, self.config = content, None
        parameters = content.get("profilingparameters")
        if content.get("disableprofiler") or not parameters:
            self._disable("User has disabled profiler.", logging.INFO)
            return
        self.config = self._parsed(parameters)
        self.profiling_enabled = True
        for part in self.config.ranges():
            if part.error_message is not None:
                self._say(part.error_message, logging.ERROR)

    def _parsed(self, parameters: Mapping[str, Any]) -> ProfilerConfig:
        try:
            files = (
                str(parameters.get("localpath", BASE_FOLDER_DEFAULT)),
                int(float(parameters.get("rotatemaxfilesizeinbytes", MAX_FILE_SIZE_DEFAULT))),
                float(parameters.get("rotatefilecloseintervalinseconds", CLOSE_FILE_INTERVAL_DEFAULT)),
                int(parameters.get("fileopenfailthreshold", FILE_OPEN_FAIL_THRESHOLD_DEFAULT)),
            )
        except ValueError as error:
            self._say(
                f"{error} in ProfilingParameters. Enabling profiling with default parameter values.", logging.INFO
            )
            thresholds = CLOSE_FILE_INTERVAL_DEFAULT, FILE_OPEN_FAIL_THRESHOLD_DEFAULT
            files = BASE_FOLDER_DEFAULT, MAX_FILE_SIZE_DEFAULT, *thresholds
        parts = ("detailed", "dataloader", "python", "smdataparallel")
        return ProfilerConfig(*files, *(self._part(parameters, f"{part}profilingconfig") for part in parts))

    def _part(self, parameters: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        """A part, which SageMaker spells as a text with a dictionary of Python's."""
        said = parameters.get(name, {})
        try:
            found = ast.literal_eval(said) if isinstance(said, str) else said
        except (ValueError, SyntaxError, RecursionError):
            found = None
        if isinstance(found, dict):
            return _small(found)
        self._say(f"{name} is {said!r:.80}; expected a dictionary. It is disabled.", logging.ERROR)
        return {}

    def _disable(self, why: str, level: int) -> None:
        self._say(why, level)
        self.config, self.profiling_enabled = None, False

    def _say(self, text: str, level: int) -> None:
        if text not in self._said:
            self._said.add(text)
            log.log(level, "%s", text)

    def should_save_metrics(
        self,
        metrics_category: MetricsCategory,
        current_step: int | str,
        metrics_name: str | None = None,
        current_time: float | None = None,
    ) -> bool:
        """Whether something is to be profiled at a step; of data loaders, an event of that name."""
        if not self.profiling_enabled or self.config is None or not isinstance(metrics_category, MetricsCategory):
            return False
        part = self.config.ranges()[metrics_category.value - 1]
        named = isinstance(part, DataloaderProfilingConfig) and metrics_name is not None
        if named and not self.config.dataloader_profiling_config.valid_metrics_name(str(metrics_name)):
            return False
        return part.can_start_profiling(current_step, current_time)

    # -- Python's profile -----------------------------------------------------------------------------

    def is_python_profiling_enabled(self) -> bool:
        """Whether Python is to be profiled at some time."""
        return self.profiling_enabled and self.config is not None and self.config.python_profiling_config.is_enabled()

    def start_pre_step_zero_python_profiling(self) -> None:
        """Profile what is before the first step."""
        if self.python_profiler is not None and self.is_python_profiling_enabled():
            self.python_profiler.start_profiling(StepPhase.START)

    def handle_step_start_python_profiling(self, mode: ModeKeys, current_step: int) -> None:
        """A step begins."""
        self._pass_python_profiling(StepPhase.STEP_START, mode, current_step)

    def handle_forward_pass_end_python_profiling(self, mode: ModeKeys, current_step: int) -> None:
        """The forward pass of a step has ended."""
        self._pass_python_profiling(StepPhase.FORWARD_PASS_END, mode, current_step)

    def handle_step_end_python_profiling(self, mode: ModeKeys, current_step: int) -> None:
        """A step has ended."""
        self._pass_python_profiling(StepPhase.STEP_END, mode, current_step)

    def start_post_hook_close_python_profiling(self) -> None:
        """Profile what is after the hook was closed."""
        if self.python_profiler is not None and self.is_python_profiling_enabled():
            self.python_profiler.start_profiling(StepPhase.END)

    def stop_post_hook_close_python_profiling(self) -> None:
        """Write what was profiled after that."""
        if self.python_profiler is not None and self.is_python_profiling_enabled():
            self.python_profiler.stop_profiling(StepPhase.END)

    def _pass_python_profiling(self, phase: StepPhase, mode: ModeKeys, step: int) -> None:
        """Write what was profiled up to a phase, and profile on from there if the step is to be."""
        if self.python_profiler is None or not self.is_python_profiling_enabled():
            return
        mode_there = PythonProfileModes[mode.name]
        self.python_profiler.stop_profiling(phase, mode_there, step)
        if self.should_save_metrics(MetricsCategory.PYTHON_PROFILING, step):
            self.python_profiler.start_profiling(phase, mode_there, step)


_parser: ProfilerConfigParser | None = None


def get_profiler_config_parser(framework: Any = None) -> ProfilerConfigParser:
    """The parser of this process, made at the first call."""
    global _parser
    if _parser is None:
        _parser = ProfilerConfigParser(framework)
    return _parser


def reset_profiler_config_parser() -> None:
    """Forget it."""
    global _parser
    _parser = None


def _number(value: Any, kind: Any) -> Any:
    return None if value is None else kind(value)


def _small(content: Any) -> dict[str, Any]:
    """With keys in small letters.

    Raises:
        ValueError: it is no object.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{content!r:.40} is a {type(content).__name__}; expected an object")
    return {str(key).lower(): _small(value) if isinstance(value, dict) else value for key, value in content.items()}
